"""Files are opened in files.py and nowhere else, but for those that no stranger can have prepared."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import overnight

ROOT = Path(overnight.__file__).parent
METHODS = {"open", "read_bytes", "read_text", "write_bytes", "write_text", "touch", "tofile"}
FUNCTIONS = {
    "fromfile",
    "load",
    "memmap",
    "open_memmap",
    "genfromtxt",
    "loadtxt",
    "copyfile",
    "copy",
    "copy2",
}
MODULES = {"np", "torch", "shutil", "format", "io", "gzip", "os"}
SYSTEM = "the system's"
PRIVATE = "in a private folder, or a new one in the temporary directory"
RESOURCE = "a part of this package"
HANDLE = "given an open file"
FOLDER = "opens a folder"
# What is opened elsewhere, how often, and why that is safe.
ELSEWHERE = {
    "cli.py os.open": (2, SYSTEM),
    "terminal.py os.open": (1, SYSTEM),
    "machine.py open": (1, SYSTEM),
    "machine.py read_text": (2, SYSTEM),
    "interfaces.py read_text": (1, SYSTEM),
    "launcher_folder.py read_text": (1, SYSTEM),
    "launcher_folder.py open": (1, PRIVATE),
    "meeting.py open": (1, PRIVATE),
    "meeting.py write_bytes": (1, PRIVATE),
    "launch.py write_text": (1, PRIVATE),
    "stop.py read_text": (1, PRIVATE),
    "stop.py write_text": (1, PRIVATE),
    "data/fast.py write_text": (1, PRIVATE),
    "report/page.py read_text": (2, RESOURCE),
    "serve/pages.py read_text": (1, RESOURCE),
    "data/tokens.py read_bytes": (1, RESOURCE),
    "data/cluster.py np.fromfile": (1, HANDLE),
    "data/staging.py os.open": (1, FOLDER),
    "lock.py os.open": (1, FOLDER),
    "weights/torch_file.py open": (1, HANDLE),
    "train.py open": (1, "the journal's"),
}


def opened(tree: ast.AST) -> Iterator[str]:
    """The calls that open a file by its path."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="open")):
                yield "open"
            case ast.Call(func=ast.Attribute(value=ast.Name(id=module), attr=name)) if module in MODULES:
                if name == "open" or name in FUNCTIONS:
                    yield f"{module}.{name}"
            case ast.Call(func=ast.Attribute(attr=name)) if name in METHODS:
                yield name


def test_the_search_finds_what_it_is_for() -> None:
    code = (
        "open(a); a.open(); (b / c).write_text(d); np.load(a); os.open(a, b); folder(x).read_bytes(); b.get()"
    )
    assert list(opened(ast.parse(code))) == ["open", "open", "write_text", "np.load", "os.open", "read_bytes"]


def test_files_are_opened_in_one_place() -> None:
    """Where this fails, use a function of files.py: they refuse what blocks, never ends or leads astray."""
    found: Counter[str] = Counter()
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if name != "files.py":
            found.update(f"{name} {call}" for call in opened(ast.parse(path.read_text("utf-8"))))
    assert found == {call: count for call, (count, _) in ELSEWHERE.items()}
