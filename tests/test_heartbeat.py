"""Heartbeats: a silent rank is found, a process that slept itself counts nobody dead."""

import itertools
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from overnight import heartbeat, meeting


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> Callable[[], str | None]:
    """`left()`: the reason for which this process would have ended, as soon as there is one."""
    reasons, came = list[str](), threading.Event()

    def leave(code: int, why: str) -> None:
        reasons.append(why)
        came.set()

    monkeypatch.setattr(heartbeat, "leave", leave)
    monkeypatch.setattr(heartbeat, "EVERY", 0.01)

    def wait(seconds: float = 60) -> str | None:
        return reasons[0] if came.wait(seconds) else None

    return wait


def beating(others: int, silent: int | None = None) -> tuple[meeting.Exchange, threading.Event]:
    """Counts of 1 + others ranks that all beat, but one; set after a hundred of them."""
    numbers, many = itertools.count(1), threading.Event()

    def exchange() -> list[int]:
        number = next(numbers)
        if number == 100:
            many.set()
        return [1 if rank == silent else number for rank in range(1 + others)]

    return exchange, many


def test_the_silent_one_of_several_is_named(left: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "SILENCE", 2.0)
    exchange, _ = beating(3, silent=2)
    with heartbeat.heartbeat(0, exchange, ["a", "b", "c", "d"]):
        assert left() == "rank 2 on c has not responded for 2 s, so rank 0 ends."


def test_a_store_that_is_gone_is_silence(left: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "SILENCE", 1.0)

    def exchange() -> list[int]:
        raise dist.DistNetworkError("connection reset by peer")

    with heartbeat.heartbeat(1, exchange, ["a", "b"]):
        assert left() == "rank 0 on a has not responded for 1 s, so rank 1 ends."


def test_a_process_that_slept_counts_nobody_dead(left: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time that it looks at the clock, a minute has passed: it was stopped, or had no time."""
    clock, looks, many = itertools.count(step=60), itertools.count(), threading.Event()

    class Time:
        @staticmethod
        def monotonic() -> float:
            if next(looks) == 100:
                many.set()
            return float(next(clock))

    monkeypatch.setattr(heartbeat, "time", Time)
    exchange, _ = beating(1, silent=1)
    with heartbeat.heartbeat(0, exchange, ["a", "b"]):
        assert many.wait(60)
    assert left(0) is None


def test_counts_of_one_machine_are_shared_through_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(meeting.MEETING, meeting.make_folder(tmp_path / "round-1"))
    size = (tmp_path / "round-1" / meeting.BEATS).stat().st_size
    (first, hosts), (second, _) = (meeting.beats(rank, 2, timedelta(seconds=9)) for rank in range(2))
    assert len(hosts) == 2
    assert (first(), second(), second(), first()) == ([1, 0], [1, 1], [1, 2], [2, 2])
    assert (tmp_path / "round-1" / meeting.BEATS).stat().st_size == size, "it does not grow"
