"""Preparing with datatrove, on the executors that need no cluster."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor
from datatrove.pipeline.filters import LambdaFilter
from datatrove.pipeline.readers import ParquetReader

from overnight.data.cluster import Finish, Tokenise
from overnight.data.manifest import BY_FIRST_SHARD, Data
from overnight.data.prepare import prepare
from overnight.errors import UserError

SHARD = 700  # tokens


def write_corpus(folder: Path, files: int, each: int) -> str:
    """A SOURCE of several .jsonl files."""
    folder.mkdir()
    draw = random.Random(files)
    for number in range(files):
        texts = [" ".join(draw.choices(["night", "été", "漢字", "it's", "12"], k=9)) for _ in range(each)]
        lines = [json.dumps({"text": f"{text} {number}.{i}"}) for i, text in enumerate(texts)]
        (folder / f"{number}.jsonl").write_text("\n".join(lines))
    return f"text:{folder}"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def here(step: Tokenise | Finish, tasks: int = 1) -> None:
    """All the tasks of a step, one after another in this process, the last first."""
    for rank in reversed(range(tasks)):
        step.run(None, rank, tasks)


@pytest.mark.parametrize(("files", "each"), [(5, 9), (5, 40)], ids=["few", "many"])
@pytest.mark.parametrize("tasks", [1, 2, 7])
def test_any_number_of_tasks_makes_the_bytes_of_prepare(
    tasks: int, files: int, each: int, tmp_path: Path
) -> None:
    source = write_corpus(tmp_path / "corpus", files, each)
    prepare(source, tmp_path / "alone", "gpt2", 1, SHARD)
    here(Tokenise(str(tmp_path / "parts"), source), tasks)
    here(Finish(str(tmp_path / "parts"), str(tmp_path / "together"), shard_tokens=SHARD))
    assert contents(tmp_path / "together") == contents(tmp_path / "alone")


def test_the_split_by_the_first_shard_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overnight.data.documents.Source.split", BY_FIRST_SHARD)
    source = write_corpus(tmp_path / "corpus", 3, 50)
    alone = prepare(source, tmp_path / "alone", "gpt2", 1, SHARD)
    assert (len(alone.split("val")), alone.manifest.split) == (SHARD, BY_FIRST_SHARD)
    here(Tokenise(str(tmp_path / "parts"), source), 2)
    here(Finish(str(tmp_path / "parts"), str(tmp_path / "together"), shard_tokens=SHARD))
    assert contents(tmp_path / "together") == contents(tmp_path / "alone")


@pytest.mark.parametrize(
    ("executor", "options"),
    [
        (LocalPipelineExecutor, {"workers": 2}),
        (RayPipelineExecutor, {"workers": 2, "mem_per_cpu_gb": 0.5}),
    ],
    ids=["local", "ray"],
)
def test_on_the_executors_of_datatrove(
    executor: Callable, options: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real worker processes, and for Ray a real local cluster."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    source = write_corpus(tmp_path / "corpus", 3, 40)
    prepare(source, tmp_path / "alone", "gpt2", 1, SHARD)
    parts = str(tmp_path / "parts")
    executor([Tokenise(parts, source)], tasks=3, logging_dir=str(tmp_path / "logs" / "1"), **options).run()
    finish = Finish(parts, str(tmp_path / "together"), shard_tokens=SHARD)
    executor([finish], tasks=1, logging_dir=str(tmp_path / "logs" / "2"), **options).run()
    if executor is RayPipelineExecutor:
        import ray

        ray.shutdown()
    assert contents(tmp_path / "together") == contents(tmp_path / "alone")


def test_documents_of_other_readers_and_filters(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    for number in range(3):
        texts = [f"the night {number}.{i}" for i in range(60)]
        pq.write_table(pa.table({"text": texts}), tmp_path / "corpus" / f"{number}.parquet")
    kept = LambdaFilter(lambda document: not document.text.endswith("7"))
    pipeline = [ParquetReader(str(tmp_path / "corpus")), kept, Tokenise(str(tmp_path / "parts"))]
    logs = str(tmp_path / "logs")
    LocalPipelineExecutor(pipeline, tasks=2, workers=1, logging_dir=logs).run()
    Finish(str(tmp_path / "parts"), str(tmp_path / "data"), "mine", SHARD).run()
    data = Data(tmp_path / "data")
    assert (data.manifest.source, data.manifest.documents) == ("mine", 3 * 54)
    found = []
    for split in ("train", "val"):
        text = data.tokenizer.decode(data.split(split).read(0, len(data.split(split))))
        numbers = [tuple(map(int, part.split("."))) for part in text.split("the night ")[1:]]
        assert numbers == sorted(numbers)
        found += numbers
    assert sorted(found) == [(number, i) for number in range(3) for i in range(60) if i % 10 != 7]


def test_what_is_not_finished_is_not_joined(tmp_path: Path) -> None:
    source = write_corpus(tmp_path / "corpus", 3, 40)
    step = Tokenise(str(tmp_path / "parts"), source)
    finish = Finish(str(tmp_path / "parts"), str(tmp_path / "data"), shard_tokens=SHARD)
    with pytest.raises(UserError, match="0 tasks of none have ended"):
        finish.run()
    step.run(None, 0, 3)
    step.run(None, 2, 3)
    with pytest.raises(UserError, match=r"2 tasks of 3 have ended\. Run it to its end"):
        finish.run()
    assert not (tmp_path / "data").exists()
    step.run(None, 1, 3)
    finish.run()
    finish.run()  # and again is nothing
    assert Data(tmp_path / "data").manifest.documents == 120


def wrong(tmp_path: Path) -> Iterator[tuple[Callable, str]]:
    source = write_corpus(tmp_path / "corpus", 2, 40)
    parts = str(tmp_path / "parts")
    yield lambda: Tokenise(parts, source, tokenizer="bpe:300"), "give gpt2 or a tokenizer.json"
    yield lambda: Tokenise(parts, "text:nowhere"), "there is no file or folder nowhere"
    yield lambda: Tokenise(parts).run(None), "needs a source, or a reader"
    yield lambda: Tokenise(parts, source).run([Document("a", "1")]), "needs a source, or a reader"
    shuffled = [Document("a", "1", metadata={"file_path": path}) for path in ("a", "b", "a")]
    yield lambda: Tokenise(parts).run(shuffled), "documents of a come in several runs"
    Tokenise(parts, source).run()
    yield lambda: Finish(parts, str(tmp_path / "data"), "a name").run(), "needs a name .* only for these"
    Tokenise(str(tmp_path / "theirs")).run([Document("a b c d", "1", metadata={"file_path": "a"})])
    yield lambda: Finish(str(tmp_path / "theirs"), str(tmp_path / "data")).run(), "needs a name"


def test_wrong_use_is_refused(tmp_path: Path) -> None:
    for act, says in wrong(tmp_path):
        with pytest.raises(UserError, match=says):
            act()
    assert not (tmp_path / "data").exists()
