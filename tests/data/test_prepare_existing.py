"""`prepare` into a folder that exists: finished data is left alone, other content is never overwritten."""

import json
import sys
from pathlib import Path

import pytest
from tests.data.small_corpus import contents, corpus, ids, some_documents
from tests.editing import edit

from overnight.data import documents
from overnight.data.manifest import Data
from overnight.data.prepare import prepare
from overnight.errors import UserError


def test_what_is_finished_is_left_alone(folder: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    data = Data(folder)
    again = prepare(data.manifest.source, folder, "char", workers=2, shard_tokens=300)
    assert again.fingerprint == data.fingerprint
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_the_standard_library_is_not_prepared_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "stdlib_files", lambda: [Path(json.__file__), Path(json.decoder.__file__)])
    first = prepare("stdlib", tmp_path / "data", "char", 1, 10**8)
    version = "{}.{}.{}".format(*sys.version_info)
    assert first.manifest.source == f"stdlib of Python {version}"
    before = (tmp_path / "data" / "manifest.json").stat().st_mtime_ns
    prepare("stdlib", tmp_path / "data", "char", 1, 10**8)
    assert (tmp_path / "data" / "manifest.json").stat().st_mtime_ns == before
    other = {"source": "stdlib of Python 2.7.18"}
    edit(tmp_path / "data" / "manifest.json", lambda manifest: manifest["request"].update(other))
    with pytest.raises(UserError, match=rf"source stdlib of Python 2\.7\.18, not stdlib of Python {version}"):
        prepare("stdlib", tmp_path / "data", "char", 1, 10**8)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"tokenizer": "gpt2"}, "tokenizer char, not gpt2"),
        ({"shard_tokens": 301}, "shard_tokens 300, not 301"),
        ({"source": "shakespeare"}, "source text:.*, not shakespeare"),
        ({"source": "text:other.txt"}, "source text:.*, not text:other.txt; its files have changed since"),
    ],
)
def test_other_data_is_not_overwritten(
    changed: dict, says: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    Path("other.txt").write_text("other text")
    before = contents(folder)
    request = {"source": Data(folder).manifest.source, "tokenizer": "char", "shard_tokens": 300, "workers": 1}
    with pytest.raises(UserError, match=rf"copy holds other data \({says}\)"):
        prepare(out=folder, **(request | changed))
    assert contents(folder) == before


def test_data_of_files_that_have_changed_is_not_taken_for_theirs(tmp_path: Path) -> None:
    source = corpus(tmp_path / "corpus", some_documents(20))
    prepare(source, tmp_path / "data", "char", 1, 10**8)
    corpus(tmp_path / "corpus", some_documents(21))
    with pytest.raises(UserError, match=r"data holds other data \(its files have changed since\)"):
        prepare(source, tmp_path / "data", "char", 1, 10**8)


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    source = corpus(tmp_path / "corpus", ["ab", "ba", "abba"])
    assert ids(prepare(source, tmp_path / "data", "char", 1, 10**8), "val") == [1, 0]


@pytest.mark.parametrize("is_folder", [True, False])
def test_what_is_no_data_folder_is_not_overwritten(is_folder: bool, tmp_path: Path) -> None:
    out = tmp_path / "out"
    precious = out / "thesis.tex" if is_folder else out
    precious.parent.mkdir(exist_ok=True)
    precious.write_text("all my work")
    with pytest.raises(UserError, match="out exists and is no data folder: choose another --out"):
        prepare("stdlib", out, "char", 1, 10**8)
    assert precious.read_text() == "all my work"
