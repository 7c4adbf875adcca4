"""`prepare` writes the same tokens for any number of workers and any shard size, in bounded memory."""

import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.data.small_corpus import at_endoftext, contents, corpus, ids, some_documents

from overnight.data.manifest import Data
from overnight.data.prepare import prepare


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("count", [90, 300], ids=["few", "many"])
def test_the_number_of_workers_changes_no_byte(count: int, tmp_path: Path) -> None:
    source = corpus(tmp_path / "corpus", some_documents(count))
    made = []
    for workers in (1, 2, 3):
        prepare(source, tmp_path / str(workers), "bpe:300", workers, shard_tokens=500)
        made.append(contents(tmp_path / str(workers)))
    assert made[0] == made[1] == made[2]
    assert len(made[0]) > 5


@pytest.mark.usefixtures("small_pieces")
def test_each_document_follows_an_endoftext_and_their_order_is_kept(tmp_path: Path) -> None:
    texts = some_documents(99)
    data = prepare(corpus(tmp_path / "corpus", texts), tmp_path / "data", "gpt2", 2, shard_tokens=500)
    border = len(data.split("train"))
    assert border == (border + len(data.split("val"))) * 9 // 10
    assert at_endoftext(data, ids(data, "train") + ids(data, "val")) == ["", *texts]


@pytest.mark.parametrize("count", [90, 300], ids=["few", "many"])
def test_small_shards_hold_the_same_tokens_as_a_large_one(count: int, tmp_path: Path) -> None:
    source = corpus(tmp_path / "corpus", some_documents(count))
    large = prepare(source, tmp_path / "large", "char", 1, 10**8)
    small = prepare(source, tmp_path / "small", "char", 1, 97)
    assert len(large.manifest.shards) == 2
    for split in ("train", "val"):
        counts = [shard["tokens"] for shard in small.manifest.shards if shard["split"] == split]
        assert set(counts[:-1]) == {97}
        assert 0 < counts[-1] <= 97
        assert ids(small, split) == ids(large, split)


def test_a_tokenizer_file_is_used_as_it_is(prepared: Path, tmp_path: Path) -> None:
    source = corpus(tmp_path / "corpus", ["the question is not to be"])
    data = prepare(source, tmp_path / "data", str(prepared / "tokenizer.json"), 1, 10**8)
    assert data.tokenizer.sha256 == Data(prepared).tokenizer.sha256
    copied = shutil.copy(prepared / "tokenizer.json", tmp_path)
    assert prepare(source, tmp_path / "data", copied, 1, 10**8).fingerprint == data.fingerprint
    assert "".join(data.tokenizer.decode(ids(data, split)) for split in ("train", "val")) == (
        "the question is not to be"
    )


MEASURE = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)  # of the largest, in KiB
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
def test_memory_does_not_grow_with_a_document(tmp_path: Path) -> None:
    """60 MB in one document: encoded all at once, its characters (4 bytes each) and ids (8) take 720 MB."""
    line = "".join(random.Random(0).choices("abcdefgh \n", k=10**6))
    with open(tmp_path / "long.txt", "w") as file:
        for _ in range(60):
            file.write(line)
    command = [sys.executable, "-c", MEASURE, sys.executable, "-m", "overnight", "prepare"]
    command += [f"text:{tmp_path / 'long.txt'}", "--out", str(tmp_path / "data"), "--tokenizer", "char"]
    command += ["--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert Data(tmp_path / "data").manifest.bytes == 60 * 10**6
    assert int(done.stdout.split()[-1]) < 400 * 1024
