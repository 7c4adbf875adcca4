"""World size is no hyper-parameter: 1, 2 and 4 ranks, replicated or sharded, train the same model."""

import json
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import MODERN, WORDS
from tests.violence import command, events, measured, newest, sabotaged

SMALL = "--device cpu --model.n-layer 2 --model.n-head 2 --model.n-embd 16 --model.block-size 128".split()
SMALL += "--batch-tokens 1024 --optim.warmup-steps 2 --optim.schedule constant --sample.length 10".split()
SMALL += "--eval-every 7 --sample-every 10 --save-every 10 --val-tokens 1000 --hellaswag-every 10".split()


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5 of HellaSwag's kind: 2 and 4 ranks have different numbers of them."""
    draw, lines = random.Random(3), []
    for number in range(5):
        start, *endings = (" ".join(draw.choices(WORDS, k=draw.randint(2, 4))) for _ in range(5))
        fields = {"ind": number, "activity_label": "a", "ctx_a": start, "ctx_b": "", "ctx": start}
        lines.append(
            json.dumps(fields | {"split": "val", "endings": endings, "label": draw.randrange(4)}) + "\n"
        )
    path = tmp_path_factory.mktemp("questions") / "hellaswag_val.jsonl"
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="module")
def train(data_folder: Path, questions: Path) -> Callable[..., None]:
    def call(run: Path, *options: object, env: dict[str, str] | None = None) -> None:
        given = ["--data", data_folder, "--run", run, "--hellaswag-file", questions, *SMALL, *options]
        line = command("train", "shakespeare-cpu", *given)
        done = subprocess.run(line, capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stderr, done.stderr

    return call


@pytest.fixture(scope="module")
def one(train: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 steps in one process, all 8 windows at once."""
    run = tmp_path_factory.mktemp("one") / "run"
    train(run, "--steps", 20)
    return run


@pytest.fixture(scope="module")
def modern(train: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the modern recipe."""
    run = tmp_path_factory.mktemp("modern") / "run"
    train(run, "--steps", 20, *MODERN)
    return run


def assert_agree(run: Path, one: Path) -> None:
    """The same records, within rounding, and the same weights at the end."""
    ours, theirs = measured(run), measured(one)
    assert [(r["kind"], r["step"], r["tokens"]) for r in ours] == [
        (r["kind"], r["step"], r["tokens"]) for r in theirs
    ]
    for a, b in zip(ours, theirs, strict=True):
        for name in a.keys() & {"loss", "bits_per_byte", "acc", "acc_norm", "lr"}:
            assert a[name] == pytest.approx(b[name], abs=1e-5), (a, b)
        for name in a.keys() & {"val_tokens", "items", "style", "prompt"}:
            assert a[name] == b[name]
        if a["kind"] == "train":
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
    weights, other = (load_file(newest(path) / "model.safetensors") for path in (run, one))
    assert weights.keys() == other.keys()
    for name in weights:
        torch.testing.assert_close(weights[name], other[name], atol=2e-4, rtol=0, msg=name)


WORLDS = {
    "2 ranks, 2 micro-steps": ["--processes", 2, "--micro-batch", 2],
    "4 ranks": ["--processes", 4],
    "4 ranks, 2 micro-steps": ["--processes", 4, "--micro-batch", 1],
    "2 shards": ["--processes", 2, "--parallel", "fsdp"],
    "2 shards, 4 micro-steps": ["--processes", 2, "--parallel", "fsdp", "--micro-batch", 1],
    "1 shard": ["--parallel", "fsdp"],
}


@pytest.mark.parametrize("world", ["2 ranks, 2 micro-steps", "2 shards", "4 ranks"])
def test_the_modern_recipe_agrees_too(world: str, train, modern: Path, tmp_path: Path) -> None:
    """Ranks orthogonalise a share each of the 8, 2 and 2 matrices of a shape; of 2, two of 4 ranks none."""
    train(tmp_path / "run", "--steps", 20, *MODERN, *WORLDS[world])
    assert_agree(tmp_path / "run", modern)


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_any_world_agrees_with_one_process(world: list, train, one: Path, tmp_path: Path) -> None:
    """5 questions and 8 windows of validation, the last one short, leave remainders on 2 and 4 ranks."""
    run = tmp_path / "run"
    train(run, "--steps", 20, *world)
    assert_agree(run, one)
    how = dict(zip(world[::2], world[1::2], strict=True))
    assert events(run, "start")[0]["detail"]["world"]["size"] == how.get("--processes", 1)


def test_a_run_moves_between_worlds(train, one: Path, tmp_path: Path) -> None:
    """4 ranks, then 2 shards, then one process: each goes on from the checkpoint of the other."""
    run = tmp_path / "run"
    train(run, "--steps", 6, "--processes", 4)
    train(run, "--steps", 13, "--processes", 2, "--parallel", "fsdp", "--micro-batch", 2)
    train(run, "--steps", 20, "--micro-batch", 8)
    changes = [event["detail"]["changes"] for event in events(run, "resume")]
    assert changes[0] == {"steps": [6, 13], "processes": [4, 2], "parallel": ["ddp", "fsdp"]}
    ours, theirs = ([r for r in measured(path) if r["kind"] == "train"] for path in (run, one))
    assert [r["step"] for r in ours] == list(range(1, 21))
    assert [r["loss"] for r in ours] == pytest.approx([r["loss"] for r in theirs], abs=1e-5)
    last = [[r for r in measured(path) if r["kind"] == "val"][-1] for path in (run, one)]
    assert last[0]["loss"] == pytest.approx(last[1]["loss"], abs=1e-5)


def test_shards_with_dropout_are_what_replicas_are(train, tmp_path: Path) -> None:
    """Masks depend on seed, step and rank; what is computed again in the backward pass has the same ones."""
    for parallel in ("ddp", "fsdp"):
        more = ["--model.dropout", 0.2, "--micro-batch", 2]
        train(tmp_path / parallel, "--steps", 6, "--processes", 2, "--parallel", parallel, *more)
    assert_agree(tmp_path / "fsdp", tmp_path / "ddp")


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_loss_that_is_no_number_on_one_rank_is_one_on_all(parallel: str, train, tmp_path: Path) -> None:
    """Rank 1 alone meets it, in updates 6 to 8; both go back to step 4, and on without those windows."""
    run = tmp_path / "run"
    more = ["--save-every", 4, "--train.max-bad-steps", 3, "--parallel", parallel, "--processes", 2]
    train(run, "--steps", 12, *more, env=sabotaged(NAN_IN="6 7 8", KILL_RANK="1"))
    assert [event["step"] for event in events(run, "nonfinite")] == [6, 7, 8]
    (gone,) = events(run, "gone_back")
    assert gone["detail"] == {"steps": [6, 8], "to": 4, "skipped": [[40, 64]]}
    assert [r["step"] for r in measured(run) if r["kind"] == "train"] == list(range(1, 13))
    for tensor in load_file(newest(run) / "model.safetensors").values():
        assert torch.isfinite(tensor).all()
