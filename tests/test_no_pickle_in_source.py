"""The source has no call that loads a pickle or runs what a file says."""

import ast
from pathlib import Path

import pytest

import overnight

SOURCES = sorted(Path(overnight.__file__).parent.rglob("*.py"))

MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
MODULES |= {"torch.package", "torch.distributed.checkpoint"}  # its .metadata is a pickle
# What they receive are pickles.
MODULES |= {"torch.distributed.rpc", "multiprocessing.connection", "multiprocessing.managers"}
CALLS = {"eval", "exec", "compile", "__import__", "read_pickle", "unsafe_load", "full_load", "load_all"}
CALLS |= {"all_gather_object", "gather_object", "broadcast_object_list", "scatter_object_list"}
CALLS |= {"send_object_list", "recv_object_list"}
REQUIRED = {"np.load": ("allow_pickle", False)}
REQUIRED |= {"numpy.load": ("allow_pickle", False), "read_array": ("allow_pickle", False)}
FORBIDDEN = {"torch.load", "yaml.load", "torch.jit.load", "torch.hub.load", "jit.load", "hub.load"}


def loads_pickles(source: str) -> list[str]:
    """The lines of some source that load, or could load, a pickle or other code."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            names += [
                alias.name for alias in node.names if alias.name in CALLS
            ]  # said again without its module
        if any(name in CALLS or name in MODULES or name.split(".")[0] in MODULES for name in names):
            found.append(f"line {node.lineno}: imports {', '.join(names)}")
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            last = called.rpartition(".")[2]
            # A method of that name is another matter: re.compile, model.eval.
            harmful = last in CALLS and not (last in ("compile", "eval", "exec") and "." in called)
            argument = REQUIRED.get(called) or REQUIRED.get(last if last != "load" else "")
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if harmful or called in FORBIDDEN or (argument and given.get(argument[0]) != str(argument[1])):
                found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_nothing_in_the_source_loads_a_pickle(path: Path) -> None:
    assert loads_pickles(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "import os, pickle as p", "from pickle import loads", "import joblib.x",
        "import marshal",
        "from torch.distributed import checkpoint", "import torch.distributed.checkpoint as dcp",
        "torch.load(path)", "torch.load(path, weights_only=False)", "torch.load(path, weights_only=True)",
        "np.load(path)", "np.load(path, allow_pickle=True)", "eval('1')", "exec(code)", "compile(a, b, c)",
        "yaml.load(file)", "dist.all_gather_object(a, b)", "torch.distributed.broadcast_object_list(a)",
        "from torch.distributed import gather_object", "np.lib.format.read_array(f, allow_pickle=True)",
        "def f():\n    import dill", "from torch.distributed import rpc",
        "from multiprocessing.connection import Listener", "import multiprocessing.managers",
        "x = pandas.read_pickle(y)",
    ],
)  # fmt: skip
def test_the_search_finds(line: str) -> None:
    assert loads_pickles(line)


def test_the_search_lets_pass() -> None:
    line = "np.load(p, allow_pickle=False); re.compile(x); model.eval()"
    assert loads_pickles(line) == []
