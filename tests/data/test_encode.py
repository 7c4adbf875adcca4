"""Workers of `prepare`: results in order, whoever is killed in between."""

import errno
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from tests.violence import children, command

from overnight.data import encode, tokens
from overnight.data.encode import Batch, in_order
from overnight.data.manifest import Data
from overnight.data.prepare import prepare
from overnight.errors import Failure

LETTERS = tokens.train_char(["abcdefghij "])


def batches(count: int) -> Iterator[tuple[int, Batch]]:
    """Of about 200 kB each, more than a pipe holds: a kill can come in the middle of one."""
    for number in range(count):
        text = "abcdefghij "[number % 10] * 200_000
        yield number, [(True, number % 3 == 0, text), (False, False, "abc")]


def check(found: list, count: int) -> None:
    assert [number for number, _ in found] == list(range(count))
    for (_, batch), (_, encoded) in zip(batches(count), found, strict=True):
        for (first, validation, text), (first_too, validation_too, ids) in zip(batch, encoded, strict=True):
            assert (first, validation) == (first_too, validation_too)
            assert np.array_equal(ids, LETTERS.encode(text))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_results_come_in_order(workers: int) -> None:
    check(list(in_order(batches(12), LETTERS, workers)), 12)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_workers_are_replaced(workers: int, number: int) -> None:
    """One after each result: whether it waits, computes, or is in the middle of a message."""
    draw, found = random.Random(number), []
    for one in in_order(batches(40), LETTERS, workers):
        found.append(one)
        if len(found) < 31 and (alive := multiprocessing.active_children()):
            victim = draw.choice(alive)
            os.kill(victim.pid, number)  # type: ignore[arg-type]
    check(found, 40)
    assert not multiprocessing.active_children()


def die(pipe: Connection, described: dict) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave(pipe: Connection, described: dict) -> None:
    os._exit(9)


def die_of_a_signal_without_a_name(pipe: Connection, described: dict) -> None:
    os.kill(os.getpid(), signal.SIGRTMIN + 3)


@pytest.mark.skipif(not hasattr(signal, "SIGRTMIN"), reason="the system has no real-time signals")
def test_a_signal_without_a_name_is_reported_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "work", die_of_a_signal_without_a_name)
    with pytest.raises(Failure, match=f"killed by signal {signal.SIGRTMIN + 3}: try"):
        list(in_order(batches(3), LETTERS, 1))


def test_a_worker_that_cannot_be_started_is_the_systems_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(kind: str) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(encode.multiprocessing, "get_context", refused)
    with pytest.raises(OSError, match="Too many open files"):
        list(in_order(batches(3), LETTERS, 2))


def test_workers_that_are_always_killed_end_it_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "text.txt"
    source.write_text("the night is long " * 1000)
    for death, says in ((die, "3 worker processes in a row were killed by SIGKILL"), (leave, "exit code 9")):
        with monkeypatch.context() as patch:
            patch.setattr(encode, "work", death)
            with pytest.raises(Failure, match=rf"{says}.*: try fewer --workers\."):
                prepare(f"text:{source}", tmp_path / "data", "char", 2, 10**8)
        assert "is kept in" in capsys.readouterr().err
    assert prepare(f"text:{source}", tmp_path / "data", "char", 2, 10**8).manifest.documents == 1


def test_what_encoding_raises_comes_back() -> None:
    with pytest.raises(encode.tokens.UserError, match="is not one of the 11 that this char tokenizer knows"):
        list(in_order(iter([(0, [(True, False, "xyz")])]), LETTERS, 2))
    assert not multiprocessing.active_children()


def test_a_consumer_that_stops_leaves_no_process() -> None:
    results = in_order(batches(40), LETTERS, 2)
    next(results)
    results.close()
    assert not multiprocessing.active_children()


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_kills_from_outside_change_no_byte(tmp_path: Path) -> None:
    source = tmp_path / "corpus"
    source.mkdir()
    for number in range(60):
        (source / f"{number:02}.txt").write_text(f"{number} night after night " * 50_000)
    prepare(f"text:{source}", tmp_path / "whole", "gpt2", 2, 10**8)
    line = command("prepare", f"text:{source}", "--out", tmp_path / "data", "--workers", 2)
    line += ["--tokenizer", "gpt2"]
    draw, kills = random.Random(1), 0
    while not (tmp_path / "data").exists():
        process = subprocess.Popen(line, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        over = threading.Event()
        while process.poll() is None:
            workers = [pid for pid in children(process.pid) if is_worker(pid)]
            if workers and kills < 12:
                os.kill(draw.choice(workers), signal.SIGKILL)
                kills += 1
                over.wait(draw.uniform(0, 0.5))
        assert process.returncode in (0, 1)
    assert kills  # how many there is time for is the machine's affair
    assert Data(tmp_path / "data").fingerprint == Data(tmp_path / "whole").fingerprint


def is_worker(pid: int) -> bool:
    try:
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
