"""What several tests of the data layer start from."""

import shutil
from pathlib import Path

import pytest
from hypothesis import settings

from overnight.data import prepare as preparing
from overnight.data import readers
from overnight.data.prepare import prepare

settings.register_profile("same every time", derandomize=True, deadline=None)
settings.load_profile("same every time")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data folder with several shards, not to be changed."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "corpus.txt").write_text("to be, or not to be: that is the question.\n" * 20)
    prepare(f"text:{folder / 'corpus.txt'}", folder / "data", "char", workers=1, shard_tokens=300)
    return folder / "data"


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(prepared, tmp_path / "copy"))


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if documents were much longer than what is held and handed out at a time."""
    monkeypatch.setattr(readers, "BLOCK", 200)
    monkeypatch.setattr(preparing, "BATCH", 300)
