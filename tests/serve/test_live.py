"""Following a run costs the same for one dashboard as for thirty, and goes on when one leaves."""

import asyncio
import threading
from pathlib import Path

import pytest

from overnight.serve.live import Live


def test_all_who_ask_at_once_share_one_look(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def follow() -> None:
        live = Live(run)
        looks, read = [], live._read

        def counted() -> dict[str, str]:
            looks.append(1)
            return read()

        monkeypatch.setattr(live, "_read", counted)
        await asyncio.gather(*(live.look() for _ in range(100)))
        assert len(looks) == 1
        await live.look()  # just now
        assert len(looks) == 1
        first = await live.summary()
        assert await live.summary() is first

    asyncio.run(follow())


def test_who_leaves_during_a_look_does_not_let_a_second_one_begin(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads would read the same run's files into the same lists."""

    async def follow() -> None:
        live = Live(run)
        began, go, read = threading.Event(), threading.Event(), live._read
        inside: list[int] = []

        def slow() -> dict[str, str]:
            inside.append(1)
            assert len(inside) == 1
            began.set()
            go.wait(60)
            inside.pop()
            return read()

        monkeypatch.setattr(live, "_read", slow)
        leaving = asyncio.create_task(live.look())
        await asyncio.to_thread(began.wait, 60)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        staying = asyncio.create_task(live.look())
        await asyncio.sleep(0)
        go.set()
        await staying
        assert live.current

    asyncio.run(follow())


def test_followers_share_the_bytes_of_an_event(run: Path) -> None:
    async def follow() -> None:
        live = Live(run)
        stopping = asyncio.Event()
        streams = [live.events(stopping) for _ in range(5)]
        messages = [await anext(stream) for stream in streams]
        assert all(message is messages[0] for message in messages)
        for stream in streams:
            await stream.aclose()

    asyncio.run(follow())
