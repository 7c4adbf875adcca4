"""A shared `data` folder, in which others made names first: what is there is neither followed nor harmed."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import Outcome

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege, FIFOs do not exist")
Cli = Callable[..., Outcome]
NAMES = [
    ".new.partial",
    ".new.partial/scratch",
    ".new.partial/progress.json",
    ".new.partial/train_000001.bin",
]
NAMES += [".new.partial/tokenizer.json", ".new.partial/manifest.json", ".new.partial/all_000001.bin"]


@pytest.fixture
def treasure(tmp_path: Path) -> Path:
    folder = tmp_path / "treasure"
    folder.mkdir()
    (folder / "file").write_text("mine")
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("the night is long " * 200)
    return path


@pytest.mark.parametrize("target", ["file", ".", "nothing"])
@pytest.mark.parametrize("name", NAMES)
def test_links_at_every_name_that_prepare_writes(
    name: str, target: str, treasure: Path, source: Path, tmp_path: Path, cli: Cli
) -> None:
    data = tmp_path / "data"
    path = data / name
    path.parent.mkdir(parents=True)
    path.symlink_to(treasure / target)
    for _ in range(2):
        done = cli("prepare", f"text:{source}", "--tokenizer", "char", "--out", data / "new", "--workers", 1)
        assert done.code in (0, 1, 2)
        assert "Traceback" not in done.err
    assert [path.name for path in treasure.iterdir()] == ["file"]
    assert (treasure / "file").read_text() == "mine"


def test_a_link_in_the_place_of_the_folder_is_named(
    treasure: Path, source: Path, tmp_path: Path, cli: Cli
) -> None:
    (tmp_path / ".new.partial").symlink_to(treasure)
    done = cli("prepare", f"text:{source}", "--tokenizer", "char", "--out", tmp_path / "new")
    assert done.code == 2
    assert "is a symbolic link: remove it, or choose another --out" in done.err


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
def test_a_folder_of_another_user_is_left_alone(source: Path, tmp_path: Path, cli: Cli) -> None:
    theirs = tmp_path / ".new.partial"
    theirs.mkdir()
    (theirs / "file").write_text("theirs")
    os.chown(theirs, 65534, 65534)
    done = cli("prepare", f"text:{source}", "--tokenizer", "char", "--out", tmp_path / "new")
    assert done.code == 2
    assert "belongs to another user (number 65534): choose another --out" in done.err
    assert (theirs / "file").read_text() == "theirs"


def test_an_export_writes_through_no_link(run: Path, treasure: Path, tmp_path: Path, cli: Cli) -> None:
    (tmp_path / ".out.partial").symlink_to(treasure)
    assert cli("export", run, "--to", "hf", "--out", tmp_path / "out").code == 0
    (tmp_path / "link").symlink_to(treasure)
    assert cli("export", run, "--to", "hf", "--out", tmp_path / "link").code == 2
    assert [path.name for path in treasure.iterdir()] == ["file"]
