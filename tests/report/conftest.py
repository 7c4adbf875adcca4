"""What several tests of the report start from."""

from pathlib import Path

import pytest


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of the run runs/x in a new current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs" / "x"
