"""What happens in the night: losses that are no numbers, a full disk, memory that runs out."""

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.violence import assert_same_end, command, events, measured
from torch import Tensor

from overnight import checkpoint, cli, records, runs, saving, start, train
from overnight.data.batches import Batches
from overnight.data.manifest import Data
from overnight.models.gpt2 import GPT
from overnight.saved import WEIGHTS, folder, list_steps
from overnight.start import Start
from overnight.stop import Stop
from overnight.watch import HALVINGS, LEAST, Watch
from overnight.world import World

SMALL = "--device cpu --model.n-layer 1 --model.n-head 2 --model.n-embd 16 --model.block-size 16 ".split()
SMALL += "--batch-tokens 64 --optim.warmup-steps 2 --sample.length 10 --val-tokens 500".split()
SMALL += "--eval-every 6 --sample-every 6 --save-every 4 --train.max-bad-steps 3".split()
BAD = 6, 7, 8  # the updates whose windows are poisoned


def options(data: Path, run: Path, *more: object) -> list[str]:
    given = ["--data", str(data), "--run", str(run), *SMALL, "--steps", "16", *map(str, more)]
    return ["train", "shakespeare-cpu", *given]


def rows_of(data: Path, steps: tuple[int, ...]) -> set[bytes]:
    """The windows of some updates (1 is the first) as bytes."""
    batches = Batches(Data(data).split("train"), 16, lambda step: 4, seed=1337)
    return {row.tobytes() for step in steps for row in batches.at(step - 1, 0, 4)[0]}


@pytest.fixture
def poison(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`poison(6, 7)`: the windows of these updates, whenever they come, have a loss that is no number."""
    intact = GPT.forward

    def arrange(*steps: int, value: float = float("nan")) -> None:
        bad = rows_of(data_folder, steps)

        def forward(self: GPT, idx: Tensor, targets: Tensor, *head: Tensor) -> Tensor:
            loss = intact(self, idx, targets, *head)
            return loss * value if any(row.numpy().tobytes() in bad for row in idx) else loss

        monkeypatch.setattr(GPT, "forward", forward)

    return arrange


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_update_that_is_not_finite_does_not_happen(
    value: float, poison, data_folder: Path, tmp_path: Path
) -> None:
    """Neither weights nor moments nor AdamW's count of steps change; the run goes on."""
    poison(6, value=value)
    run = tmp_path / "run"
    assert cli.run(options(data_folder, run, "--save-every", 1, "--keep", 20)) == 0
    (event,) = events(run, "nonfinite")
    assert (event["step"], event["detail"]["in_a_row"], event["detail"]["loss"]) == (6, 1, None)
    train_records = [r for r in measured(run) if r["kind"] == "train"]
    assert [r["step"] for r in train_records if r["loss"] is None] == [6]
    # No checkpoint is made while updates do not happen: that of step 6 comes a step late.
    assert list_steps(run) == [1, 2, 3, 4, 5, *range(7, 17)]
    counts = {
        step: load_file(folder(run, step) / "optimizer.safetensors")["wte.weight.step"] for step in (5, 7)
    }
    assert counts == {5: 5.0, 7: 6.0}
    assert all(torch.isfinite(tensor).all() for tensor in load_file(folder(run, 16) / WEIGHTS).values())


def test_the_step_after_a_bad_one_starts_from_the_weights_before_it(
    poison, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped in the bad step, its checkpoint is that of the step before but for what is counted."""
    poison(6)
    run = tmp_path / "run"
    assert cli.run(options(data_folder, run, "--steps", 5, "--optim.schedule", "constant")) == 0
    assert cli.run(options(data_folder, run, "--steps", 6, "--optim.schedule", "constant", "--keep", 9)) == 0
    for name in (WEIGHTS, "optimizer.safetensors"):
        assert (folder(run, 5) / name).read_bytes() == (folder(run, 6) / name).read_bytes()
    assert json.loads((folder(run, 6) / "state.json").read_text())["bad_steps"] == 1
    assert (
        "step 6: loss nan, gradient norm nan: this update did not happen (1 in a row)."
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("lag", [0, 1])
def test_too_many_in_a_row_go_back_and_leave_their_windows_out(
    lag: int, poison, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether their numbers are read at once or, as on a GPU, when the next step is on its way."""
    monkeypatch.setattr(World, "lag", lag)
    poison(*BAD)
    run = tmp_path / "run"
    assert cli.run(options(data_folder, run)) == 0
    (gone,) = events(run, "gone_back")
    assert gone["detail"] == {"steps": [6, 8], "to": 4, "skipped": [[20, 32]]}
    assert [event["step"] for event in events(run, "resume")] == [4]
    assert [r["step"] for r in measured(run) if r["kind"] == "train"] == list(range(1, 17))
    assert all(r["loss"] is not None for r in measured(run) if r["kind"] == "train")
    assert json.loads((folder(run, 16) / "state.json").read_text())["skipped"] == [[20, 32]]


def test_a_run_that_went_back_resumes_exactly(
    poison, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped among the bad steps, after them, and once more after the next checkpoint."""
    poison(*BAD)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert cli.run(options(data_folder, whole)) == 0
    for updates in (7, 3, 3):
        calls: list[int] = []

        def asked(self: Stop, calls: list[int] = calls, updates: int = updates) -> str:
            calls.append(1)
            return "preempted" if len(calls) == updates else ""

        monkeypatch.setattr(Stop, "asked", asked)
        assert cli.run(options(data_folder, cut)) == 75
    monkeypatch.undo()
    poison(*BAD)
    assert cli.run(options(data_folder, cut)) == 0
    assert len(events(cut, "resume")) > len(events(whole, "resume"))
    assert_same_end(cut, whole)


def test_the_last_good_checkpoint_outlives_stops_among_bad_steps(
    poison, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --keep 1, stopped in steps 7 and 8 of a bad row: newer, but not to go back to."""
    row, run = (6, 7, 8, 9, 10), tmp_path / "run"
    more = ["--keep", 1, "--train.max-bad-steps", 5]
    poison(*row)
    for _ in range(2):
        monkeypatch.setattr(Stop, "asked", lambda self: "preempted" if events(run, "nonfinite") else "")
        assert cli.run(options(data_folder, run, *more)) == 75
    monkeypatch.undo()
    poison(*row)
    assert list_steps(run) == [4, 8]
    assert cli.run(options(data_folder, run, *more)) == 0
    assert events(run, "gone_back")[0]["detail"]["to"] == 4


def test_going_back_needs_no_room_on_the_disk(
    poison, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is cut off the records makes room for the events in it."""
    poison(*BAD)
    whole, run, intact = tmp_path / "whole", tmp_path / "run", train.Session.back_before
    assert cli.run(options(data_folder, whole)) == 0

    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def back_before(self: train.Session, row: train.BadSteps) -> Start:
        for module in (records, start):
            monkeypatch.setattr(module, "write_synced", full)
        return intact(self, row)

    monkeypatch.setattr(train.Session, "back_before", back_before)
    assert cli.run(options(data_folder, run)) == 0
    assert_same_end(run, whole)
    assert [e["step"] for e in events(run, "nonfinite")] == [e["step"] for e in events(whole, "nonfinite")]


def test_with_no_checkpoint_yet_it_begins_again(poison, data_folder: Path, tmp_path: Path) -> None:
    poison(1, 2, 3)
    run = tmp_path / "run"
    assert cli.run(options(data_folder, run)) == 0
    assert events(run, "gone_back")[0]["detail"] == {"steps": [1, 3], "to": 0, "skipped": [[0, 12]]}
    seen = np.concatenate([Batches(Data(data_folder).split("train"), 16, lambda _: 4, 1337).windows(3)])
    skipping = Batches(Data(data_folder).split("train"), 16, lambda _: 4, 1337, skipped=[[0, 12]])
    assert seen.tolist() == skipping.windows(0).tolist()
    assert [r["step"] for r in measured(run) if r["kind"] == "train"] == list(range(1, 17))


def test_where_going_back_does_not_help_it_gives_up_clearly(
    poison, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    poison(*range(6, 40))
    run = tmp_path / "run"
    assert cli.run(options(data_folder, run)) == 1
    error = capsys.readouterr().err
    assert "steps 6 to 8, again after going back to step 4" in error
    assert f"--init-from {run}@4 --optim.lr" in error
    assert len([line for line in error.splitlines() if line.startswith(("overnight:", "Try"))]) == 2
    assert list_steps(run) == [4]
    assert events(run, "gave_up")[0]["detail"] == {"steps": [6, 8], "checkpoint": 4}
    # What it advises works.
    advice = ["--init-from", f"{run}@4", "--optim.lr", 1e-4, "--optim.min-lr", 0, "--steps", 3]
    assert cli.run(options(data_folder, tmp_path / "new", *advice)) == 0


def test_a_run_may_go_back_more_than_once_as_long_as_it_comes_further(
    poison, data_folder: Path, tmp_path: Path
) -> None:
    """The second row is of windows that would have come later: 14, 15, 16 move up by three steps."""
    poison(*BAD, 14, 15, 16)
    run = tmp_path / "run"
    assert cli.run(options(data_folder, run)) == 0
    assert [(e["step"], e["detail"]["to"]) for e in events(run, "gone_back")] == [(8, 4), (13, 8)]
    assert events(run, "gone_back")[1]["detail"]["skipped"] == [[20, 32], [52, 64]]
    assert [r["step"] for r in measured(run) if r["kind"] == "train"] == list(range(1, 17))


def test_numbers_read_a_step_late_are_the_same(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.run(options(data_folder, tmp_path / "now")) == 0
    monkeypatch.setattr(World, "lag", 1)
    assert cli.run(options(data_folder, tmp_path / "late")) == 0
    assert_same_end(tmp_path / "late", tmp_path / "now")


def test_fp16_halves_its_scale_where_an_update_did_not_happen(
    poison, data_folder: Path, tmp_path: Path
) -> None:
    poison(6)
    run = tmp_path / "run"
    assert cli.run(options(data_folder, run, "--precision", "fp16", "--save-every", 1, "--keep", 20)) == 0
    scales = [json.loads((folder(run, n) / "state.json").read_text())["scaler"]["scale"] for n in (5, 7)]
    assert scales == [65_536.0, 32_768.0]


def test_fp16_looking_for_its_scale_is_no_bad_night() -> None:
    """Gradients that overflow with a finite loss halve the scale, but not more than 16 times in a row."""
    watch = Watch(0, [], scaled=True)
    for _ in range(HALVINGS):
        assert watch.nonfinite(2.0, float("inf"))
    assert watch.bad_steps == 0
    assert watch.nonfinite(2.0, float("inf"))
    assert watch.bad_steps == 1
    assert not watch.nonfinite(2.0, 1.0)
    assert watch.bad_steps == 0
    assert watch.nonfinite(float("nan"), float("nan"))
    assert watch.bad_steps == 1, "a loss that is no number has nothing to do with the scale"


def test_spikes_are_told_from_noise_and_from_the_first_steps() -> None:
    draw = np.random.default_rng(1)
    watch = Watch(0, [], scaled=False)
    noise = [3.0 + 0.1 * float(x) for x in draw.standard_normal(400)]
    assert not any(watch.spike(loss) for loss in noise)
    assert watch.spike(4.2) > 6
    assert not Watch(0, noise[: LEAST - 1], scaled=False).spike(9.0), "too little is known yet"
    falling = Watch(0, [], scaled=False)
    assert not any(falling.spike(10.8 * 0.97**n) for n in range(100)), "learning is no spike"


def test_a_spike_is_recorded(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poison
) -> None:
    poison(45, value=50.0)
    run = tmp_path / "run"
    assert cli.run(options(data_folder, run, "--steps", 48)) == 0
    (spike,) = events(run, "spike")
    assert spike["step"] == 45
    assert spike["detail"]["sigmas"] > 6


@contextlib.contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file can grow over `limit` bytes, as on a disk that is full."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit", [300, 10_000], ids=["records too", "checkpoints only"])
def test_a_disk_that_is_full_for_a_while_costs_nothing(
    limit: int, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """From step 3 to step 10; the run goes on, says so, and in the end nothing is missing."""
    monkeypatch.setattr("overnight.saving.AGAIN_AFTER", 0.0)
    assert cli.run(options(data_folder, tmp_path / "whole")) == 0
    intact, disk = train.Session.update, contextlib.ExitStack()

    def update(self: train.Session, step: int) -> str:
        if step == 3:
            disk.enter_context(full_disk(limit))
        if step == 11:
            disk.close()
        return intact(self, step)

    monkeypatch.setattr(train.Session, "update", update)
    capsys.readouterr()
    with disk:
        assert cli.run(options(data_folder, tmp_path / "full")) == 0
    said = capsys.readouterr().out
    assert "NOT SAVED: " in said
    assert ("records wait in memory, training goes on" in said) == (limit == 300)
    assert events(tmp_path / "full", "save_failed")
    assert_same_end(tmp_path / "full", tmp_path / "whole")
    assert [event["step"] for event in events(tmp_path / "full", "checkpoint")][-1] == 16


def test_a_disk_that_has_room_again_while_the_end_waits_for_it_costs_nothing(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No record comes any more that would take those with it that wait."""
    assert cli.run(options(data_folder, tmp_path / "whole")) == 0
    intact, disk, slept = train.Session.update, contextlib.ExitStack(), []

    def update(self: train.Session, step: int) -> str:
        if step == 3:
            disk.enter_context(full_disk(300))
        return intact(self, step)

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            disk.close()

    monkeypatch.setattr(train.Session, "update", update)
    monkeypatch.setattr(saving, "PATIENCE", 5.0)
    monkeypatch.setattr(saving, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    with disk:
        assert cli.run(options(data_folder, tmp_path / "full")) == 0
    assert len(slept) == 2
    assert_same_end(tmp_path / "full", tmp_path / "whole")


def test_a_disk_that_will_not_do_is_told_at_the_start(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100_000))
    assert cli.run(options(data_folder, tmp_path / "run")) == 0
    # Four of 3,696 parameters: the newest two, the best, and one being written.
    said = "The disk has 100.0 kB free; this run's checkpoints want 177.4 kB (--keep)."
    assert said in capsys.readouterr().out


def test_older_checkpoints_make_room_for_a_new_one(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """A disk for two and a half checkpoints, and --keep 9: the newest before it stays until it is there."""
    run, intact = tmp_path / "run", checkpoint.write_tensors

    def full(tensors: dict[str, Tensor], path: Path) -> str:
        if len(list_steps(run)) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return intact(tensors, path)

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    assert cli.run(options(data_folder, run, "--keep", 9, "--save-every", 2, "--eval-every", 0)) == 0
    assert list_steps(run) == [14, 16]
    assert "NOT SAVED" not in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not keep to RLIMIT_AS")
def test_out_of_memory_names_the_micro_batch_that_fits(data_folder: Path, tmp_path: Path) -> None:
    """A real limit on a real process; what the message says is done, and then it fits."""
    run = tmp_path / "run"
    big = "--device cpu --model.n-layer 20 --model.n-head 4 --model.n-embd 256 --model.block-size 16"
    big += " --batch-tokens 16384 --steps 1 --eval-every 0 --sample.length 1"
    line = command("train", "shakespeare-cpu", "--data", data_folder, "--run", run, *big.split())

    def limited() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (5 << 30, resource.RLIM_INFINITY))

    def attempt(*more: str) -> subprocess.CompletedProcess:
        return subprocess.run([*line, *more], preexec_fn=limited, capture_output=True, text=True)

    failed = attempt("--micro-batch", "1024")
    assert failed.returncode == 1, failed.stderr
    assert "overnight: out of memory on cpu with --micro-batch 1024" in failed.stderr
    assert "Traceback" not in failed.stderr
    fits = failed.stderr.partition("Give --micro-batch ")[2].split()[0]
    assert 1 <= int(fits) < 1024
    done = attempt("--micro-batch", fits)
    assert done.returncode == 0, done.stderr
    assert runs.read_config(run)[0].micro_batch == int(fits)


def test_memory_does_not_grow_with_the_steps(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The long form, over 10,000 steps, is in benchmarks/saving.py."""
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs Linux")
    sizes, intact = {}, train.Session.update

    def update(self: train.Session, step: int) -> str:
        sizes[step] = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return intact(self, step)

    monkeypatch.setattr(train.Session, "update", update)
    long = ["--steps", 2000, "--eval-every", 200, "--save-every", 100, "--sample-every", 500]
    assert cli.run(options(data_folder, tmp_path / "run", *long)) == 0
    assert sizes[2000] - sizes[800] < 3 << 20, "1,200 steps may not cost 2.5 kB each"
