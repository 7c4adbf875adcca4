"""Names in manifests and their like cannot lead out of their folder: not on this system, not on Windows."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests import fuzz_data, fuzz_weights
from tests.conftest import Outcome
from tests.fuzzing import watched

from overnight.data.cluster import Finish
from overnight.data.manifest import Data
from overnight.data.prepare import resume
from overnight.errors import UserError
from overnight.weights import hf

# {} is the name of a sound file; each of these, were it followed, would find such a file, or none.
WAYS_OUT = [
    "../outside/{}", "a/../../outside/{}", "./../outside/{}", "{}/../../outside/{}", "{folder}/../outside/{}",
    "//{folder}/../outside/{}", "a/{}", "./{}", "..", ".", "", "/", "/etc/passwd", "{}\0", "\0", "{}/",
    "{}\n", "con", "NUL", "{} ", "{}.", "%2e%2e%2foutside%2f{}",
    "..\\outside\\{}", "\\outside\\{}", "C:\\outside\\{}", "C:{}", "\\\\host\\share\\{}", "{}:stream", "~/{}",
    "\uff0e\uff0e/outside/{}", "\ud800{}", 5, None, [], ["{}"],
]  # fmt: skip


def filled(way: Any, name: str, folder: Path) -> Any:
    return way.replace("{}", name).replace("{folder}", str(folder)) if isinstance(way, str) else way


def twin(folder: Path) -> None:
    """The same files at every place that a way out leads to."""
    shutil.copytree(folder, folder.parent / "outside")
    shutil.copytree(folder, folder / "a", ignore=shutil.ignore_patterns("a"))


def rewrite(path: Path, change: Callable[[Any], object]) -> None:
    described = json.loads(path.read_bytes())
    change(described)
    path.write_text(json.dumps(described))


@pytest.mark.parametrize("way", WAYS_OUT)
def test_of_a_manifest(way: Any, tmp_path: Path, cli: Callable[..., Outcome]) -> None:
    path = fuzz_data.make_data(tmp_path)
    folder = path.parent
    twin(folder)
    Data(folder)
    rewrite(path, lambda found: found["shards"][0].update(file=filled(way, "train_000001.bin", folder)))
    with watched(tmp_path) as opened, pytest.raises(UserError, match="damaged"):
        Data(folder)
    assert opened == []
    outcome = cli("train", "shakespeare-cpu", "--data", folder, "--run", tmp_path / "run", "--device", "cpu")
    assert (outcome.code, outcome.out) == (2, "")
    assert len(outcome.err.splitlines()) <= 3


@pytest.mark.parametrize("way", WAYS_OUT)
def test_of_an_index(way: Any, tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    folder = fuzz_weights.make_hf(tmp_path / "hf")
    twin(folder)
    hf.read(folder)
    name = filled(way, "model-1.safetensors", folder)
    rewrite(folder / hf.INDEX, lambda found: found["weight_map"].update({"transformer.wte.weight": name}))
    with watched(tmp_path) as opened, pytest.raises(UserError, match="weight_map does not name"):
        hf.read(folder)
    assert opened == []


@pytest.mark.parametrize("way", WAYS_OUT)
def test_of_data_in_the_making(way: Any, tmp_path: Path) -> None:
    path = fuzz_data.make_progress(tmp_path)
    folder = path.parent
    twin(folder)
    resume(folder, fuzz_data.TINY)
    before = (tmp_path / "outside" / "train_000001.bin").read_bytes()
    name = filled(way, "train_000001.bin", folder)
    rewrite(path, lambda found: found["shards"]["train"]["shards"][0].update(file=name))
    with watched(tmp_path) as opened, pytest.raises(UserError, match="damaged"):
        resume(folder, fuzz_data.TINY)
    assert opened == []
    assert (tmp_path / "outside" / "train_000001.bin").read_bytes() == before


@pytest.mark.parametrize("way", WAYS_OUT)
def test_of_the_parts_of_many_machines(way: Any, tmp_path: Path) -> None:
    path = fuzz_data.make_parts(tmp_path)
    folder = path.parent
    twin(folder)
    name = filled(way, json.loads(path.read_bytes())["parts"][0]["name"], folder)
    rewrite(path, lambda found: found["parts"][0].update(name=name))
    with watched(tmp_path) as opened, pytest.raises(UserError, match="is damaged"):
        Finish(str(folder), str(tmp_path / "data")).run()
    assert opened == []
    assert not (tmp_path / "data").exists()
