"""`overnight prepare` of a dataset on a hub: its names, its split, its downloads and its errors."""

import sys
from pathlib import Path

import numpy as np
import pytest
from tests.data.hub_corpus import (
    CONTENT,
    FILES,
    FINEWEB,
    ROWS,
    SHARDS,
    Start,
    begin_process,
    everything,
    expected,
    hub,
    run,
    start,
)
from tests.data.misbehaving import COMMIT, Misbehaving
from tests.data.small_corpus import contents

from overnight.data import corpora
from overnight.data.manifest import Data
from overnight.data.prepare import prepare
from overnight.evals.reference import corpus

__all__ = ["expected", "hub", "start"]


def test_the_first_shard_is_validation_and_nothing_is_left_but_the_data(
    hub: Misbehaving, start: Start, tmp_path: Path, expected: np.ndarray
) -> None:
    code, out, err = run(start, "fineweb-edu", *SHARDS)
    # Where it takes longer than two seconds, and only there, lines of progress.
    complaints = [line for line in err.splitlines() if not line.endswith(" left")]
    assert (code, complaints) == (0, [])
    assert f"data/fineweb-edu: {FILES * ROWS} documents" in out
    data = Data(tmp_path / "data" / "fineweb-edu")
    assert np.array_equal(everything(data), expected)
    made = data.manifest
    assert (made.source, made.split) == ("fineweb-edu:sample-10BT", "the first shard in the dataset's order")
    assert (made.tokens["val"], len(made.shards)) == (20_000, -(-len(expected) // 20_000))
    assert made.details == {"dataset": FINEWEB, "config": "sample-10BT", "revision": COMMIT}
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["fineweb-edu"]
    assert sum(hub.sent.values()) == sum(map(len, CONTENT.values()))


def test_what_is_ready_needs_no_hub(hub: Misbehaving, start: Start, tmp_path: Path) -> None:
    assert run(start, "fineweb-edu", *SHARDS)[0] == 0
    for name in ("fineweb-edu", "fineweb-edu:sample-10BT"):
        code, out, err = run(
            start, name, "--out", "data/fineweb-edu", *SHARDS, HF_ENDPOINT="http://127.0.0.1:9"
        )
        assert (code, err) == (0, "")
        assert "was ready already" in out


def test_downloads_are_kept_if_wanted(hub: Misbehaving, start: Start, tmp_path: Path) -> None:
    """And used again; then with any tokenizer, even one that reads everything twice."""
    assert run(start, "fineweb-edu", *SHARDS, "--keep-downloads")[0] == 0
    kept = sorted((tmp_path / "data" / "downloads").rglob("*.parquet"))
    assert [path.read_bytes() for path in kept] == list(CONTENT.values())
    sent = sum(hub.sent.values())
    code, _, err = run(start, "fineweb-edu", *SHARDS, "--out", "data/again", "--keep-downloads")
    assert (code, sum(hub.sent.values())) == (0, sent), err


def test_other_datasets_are_split_by_their_documents(hub: Misbehaving, start: Start, tmp_path: Path) -> None:
    """As a folder of the same files is, byte for byte but for its name; with a tokenizer learnt from them."""
    code, _, err = run(start, "hf:night/corpus", "--tokenizer", "bpe:300", *SHARDS)
    assert code == 0, err
    (tmp_path / "files").mkdir()
    for path, content in CONTENT.items():
        (tmp_path / "files" / Path(path).name).write_bytes(content)
    local = prepare(f"text:{tmp_path / 'files'}", tmp_path / "local", "bpe:300", 1, 20_000)
    made = Data(tmp_path / "data" / "corpus")
    assert made.fingerprint == local.fingerprint
    assert made.manifest.split == "documents whose SHA-256 is 0 modulo 20"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["fineweb-edu", "--tokenizer", "bpe:300"], "is split by counting tokens"),
        (["fineweb-edu", "--tokenizer", "char"], "reads all of fineweb-edu:sample-10BT before"),
        (["fineweb-edu:sample-1BT"], "no files"),
        (["fineweb-edu:sampel-10BT"], "has no config sampel-10BT. Did you mean sample-10BT?"),
        (["hf:night/curpos"], "there is no repository night/curpos"),
        (["hf:night/corpus@v9"], "has no revision v9"),
        (["hf:night/corpus:de"], "has no configs: leave out de"),
        (["hf:"], "names no dataset: hf:USER/NAME"),
        (["openwebtext"], "there is no repository Skylion007/openwebtext"),
    ],
)
def test_what_cannot_be_had_is_said_and_leaves_nothing(
    arguments: list[str], says: str, start: Start, tmp_path: Path
) -> None:
    code, out, err = run(start, *arguments)
    assert (code, out) == (2, ""), err
    assert says in err
    assert len(err.splitlines()) <= 3
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("source", "name", "found"),
    [
        ("fineweb-edu", "fineweb-edu:sample-10BT", (FINEWEB, "sample-10BT", None)),
        ("fineweb@v1.4", "fineweb:sample-10BT@v1.4", ("HuggingFaceFW/fineweb", "sample-10BT", "v1.4")),
        (
            "fineweb:CC-MAIN-2024-10",
            "fineweb:CC-MAIN-2024-10",
            ("HuggingFaceFW/fineweb", "CC-MAIN-2024-10", None),
        ),
        ("hf:a/b:en@main", "hf:a/b:en@main", ("a/b", "en", "main")),
        ("openwebtext", "openwebtext", ("Skylion007/openwebtext", None, None)),
    ],
)
def test_the_grammar_of_names(source: str, name: str, found: tuple) -> None:
    assert corpora.full_name(source) == name
    assert corpora.parts(name) == found


def test_the_published_curves_know_the_corpus_by_its_name(
    hub: Misbehaving, start: Start, tmp_path: Path
) -> None:
    """But only with 100 M tokens of validation, which this one has not."""
    assert run(start, "fineweb-edu", *SHARDS)[0] == 0
    assert corpus(Data(tmp_path / "data" / "fineweb-edu").manifest) is None


TWO_TASKS = """
import sys
from overnight.data.cluster import Finish, Tokenise
for rank in (0, 1):
    Tokenise("parts", "fineweb-edu").run(None, rank, 2)
Finish("parts", "together", shard_tokens=20_000).run()
"""


def test_two_machines_share_the_files(hub: Misbehaving, start: Start, tmp_path: Path) -> None:
    """Each downloads its own."""
    program = start("fineweb-edu", *SHARDS, "--out", "alone")
    together = begin_process([sys.executable, "-c", TWO_TASKS], hub, tmp_path)
    assert program.wait(timeout=60) == 0
    _, err = together.communicate(timeout=60)
    assert together.returncode == 0, err
    assert contents(tmp_path / "together") == contents(tmp_path / "alone")
    assert sum(hub.sent.values()) == 2 * sum(map(len, CONTENT.values()))
    assert not list((tmp_path / "parts").glob("scratch*"))
