"""Asked to stop at any moment, a run loses nothing and its end is that of one never stopped, bit for bit."""

import hashlib
import itertools
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from tests.violence import assert_same_end, events

from overnight import cli, records, stop
from overnight.saved import check, folder, list_steps
from overnight.stop import Stop, agreed, as_numbers

TINY = "--device cpu --model.n-layer 1 --model.n-head 2 --model.n-embd 16 --model.block-size 16".split()
TINY += "--batch-tokens 64 --micro-batch 1 --steps 6 --optim.warmup-steps 1 --sample.length 4".split()
TINY += "--eval-every 2 --sample-every 3 --hellaswag-every 2 --save-every 5 --val-tokens 600 --keep 9".split()
QUESTION = {
    "activity_label": "night", "ctx_a": "the night", "ctx_b": "is", "ctx": "the night is", "label": 0,
    "endings": ["long", "one word", "another", "until morning"],
}  # fmt: skip


@pytest.fixture
def options(data_folder: Path, tmp_path: Path) -> list[str]:
    questions = tmp_path / "hellaswag.jsonl"
    questions.write_text((json.dumps(QUESTION) + "\n") * 12)
    return ["train", "shakespeare-cpu", "--data", str(data_folder), *TINY, "--hellaswag-file", str(questions)]


def stopped_at(look: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let a run be interrupted when it looks for the `look`-th time whether it should stop. Returns a list
    that has an entry for each look."""
    looks: list[int] = []

    def urgent(self: Stop) -> str:
        looks.append(len(looks) + 1)
        return "interrupted" if len(looks) >= look else ""

    monkeypatch.setattr(Stop, "urgent", urgent)
    return looks


def test_stopped_at_every_look_it_ends_alike(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between any two micro-batches, before and inside each evaluation."""
    whole, run = tmp_path / "whole", tmp_path / "cut"
    looks = stopped_at(10**9, monkeypatch)
    assert cli.run([*options, "--run", str(whole)]) == 0
    assert len(looks) > 40
    seen = set()
    for look in itertools.count(2):  # each process gets a little further
        stopped_at(look, monkeypatch)
        code = cli.run([*options, "--run", str(run)])
        if code == 0:
            break
        assert code == 130
        if steps := list_steps(run):
            seen |= set(check(folder(run, steps[-1])).owed)
        for record in records.read(run):
            assert record["kind"] != "event" or record["name"] != "save_failed"
    assert seen == {"validate", "hellaswag", "sample"}, "each was left undone once"
    assert_same_end(run, whole)


def test_a_run_stopped_in_its_last_validation_is_not_complete(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    looks = stopped_at(10**9, monkeypatch)
    assert cli.run([*options, "--run", str(other), "--eval-every", "0", "--hellaswag-every", "0"]) == 0
    last = len(looks) - 2  # the last evaluations end with two looks
    stopped_at(last, monkeypatch)
    assert cli.run([*options, "--run", str(run), "--eval-every", "0", "--hellaswag-every", "0"]) == 130
    assert check(folder(run, 6)).owed
    monkeypatch.undo()
    assert cli.run([*options, "--run", str(run), "--eval-every", "0", "--hellaswag-every", "0"]) == 0
    assert_same_end(run, other)
    capsys.readouterr()
    assert cli.run([*options, "--run", str(run), "--eval-every", "0", "--hellaswag-every", "0"]) == 0
    assert capsys.readouterr().out == f"{run} is complete (6 steps): nothing to do.\n"
    assert len(events(run, "done")) == 1


SIGNALS = [(signal.SIGTERM, "preempted"), (signal.SIGINT, "interrupted")]


@pytest.mark.parametrize(("number", "reason"), SIGNALS)
def test_a_signal_is_received_while_the_main_thread_is_deaf(
    number: int, reason: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a backward pass, a call of many seconds: Python's own handlers wait for its end."""
    left: list[int] = []
    monkeypatch.setattr(stop, "leave", lambda code, why: left.append(code))
    busy = threading.Event()
    received_while_busy: list[bool] = []

    def ask() -> None:
        os.kill(os.getpid(), number)
        wait_for(lambda: asked.urgent() == reason)
        if number == signal.SIGINT:
            os.kill(os.getpid(), number)
            wait_for(lambda: left == [130])
        received_while_busy.append(busy.is_set())

    with Stop() as asked:
        asked.begin(0)
        asker = threading.Thread(target=ask)
        busy.set()
        asker.start()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 20_000_000)
        busy.clear()
        asker.join()
    assert received_while_busy == [True]
    assert capfd.readouterr().err.count("stopping: ") == 1


@pytest.mark.parametrize(
    ("rank", "folder", "seconds", "leaves"),
    [
        (False, False, 0.0, True),
        (True, False, 0.0, False),  # from the terminal, and from torchrun
        (True, False, 2.0, True),
        (True, True, 2.0, False),  # our launcher counts
    ],
)
def test_one_ctrl_c_that_comes_twice_is_no_second_one(
    rank: bool, folder: bool, seconds: float, leaves: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[int] = []
    now = 1000.0
    monkeypatch.setattr(stop, "leave", lambda code, why: left.append(code))
    monkeypatch.setattr(stop.time, "monotonic", lambda: now)
    monkeypatch.setattr(stop, "acknowledge", lambda what: None)
    if rank:
        monkeypatch.setenv(stop.UNDER_TORCHRUN, "x")
    if folder:
        monkeypatch.setenv(stop.STOP_FOLDER, str(tmp_path))
    asked = Stop()
    asked._receive(signal.SIGINT)
    assert asked.urgent() == "interrupted"
    now += seconds
    asked._receive(signal.SIGINT)
    assert left == [130] * leaves


@pytest.mark.parametrize(("number", "reason"), SIGNALS)
def test_it_is_acknowledged_before_the_first_step_too(
    number: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the main thread reads data or compiles: its handler, which ends the process, has not run yet."""
    said: list[str] = []
    monkeypatch.setattr(stop, "acknowledge", said.append)
    monkeypatch.setattr(Stop, "_handle", lambda self, number, frame: None)
    with Stop() as asked:
        asked.ready()
        os.kill(os.getpid(), number)
        wait_for(lambda: bool(said))
        assert asked.urgent() == reason
        os.kill(os.getpid(), number)
    assert said == ["there is nothing to save yet."]


def wait_for(happened) -> None:
    until = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_before_the_first_step_a_signal_ends_the_process_at_once() -> None:
    def wait() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

    with Stop() as asked:
        asked.ready()
        with pytest.raises(KeyboardInterrupt):
            wait()


def test_ranks_agree_on_the_gravest_reason() -> None:
    for ours, theirs, expected in [
        ("", "", ""), ("", "time", "time"), ("preempted", "time", "preempted"),
        ("interrupted", "preempted", "interrupted"), ("changed", "interrupted", "changed"),
    ]:  # fmt: skip
        sums = [a + b for a, b in zip(as_numbers(ours), as_numbers(theirs), strict=True)]
        assert agreed(sums) == expected
