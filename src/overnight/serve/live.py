"""Follows a run as it trains: the report's parts and figures, sent on to open dashboards as they change."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from overnight import records, runs
from overnight.report import facts
from overnight.report.facts import Run
from overnight.report.figures import figures
from overnight.report.parts import Section, sections
from overnight.report.summary import summary

log = logging.getLogger("overnight.serve")

EVERY = 0.5  # seconds between looks at the run's files
SHARE = 0.2  # of the time, at most, goes into looking
SLOWEST = 5.0
STATE_EVERY = 10.0  # seconds after which the state is looked at though nothing was recorded
MOST_FOLLOWERS = 32


class Live:
    """One run, followed only while somebody looks."""

    def __init__(self, path: Path):
        self.run: Run = facts.open_run(str(path.absolute()))
        self.current: dict[str, tuple[int, str]] = {}
        """Part or chart -> (version, JSON)."""
        self.version = 0
        self.watchers = 0
        self._changed = asyncio.Event()
        self._messages: dict[int, bytes] = {}
        """Version that a follower has -> what it gets for the current one; shared by all followers."""
        self._due = self._summary_due = -1.0
        self._looking: asyncio.Task[None] | None = None
        self._summary = b""
        self._stamps: tuple[Any, ...] = ()
        self._seen_at = -STATE_EVERY
        self._lock = asyncio.Lock()

    async def follow(self) -> None:
        """Look, for as long as the server runs."""
        while True:
            if self.watchers:
                try:
                    await self.look()
                except Exception:  # whatever it is: the next record may be a better one
                    log.exception("following %s", self.run.path)
            await asyncio.sleep(max(EVERY, self._due - time.monotonic()))

    async def look(self) -> None:
        """Take in what is new, unless that was done just now. All who ask meanwhile wait for the same look,
        which goes on when one of them leaves."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        await asyncio.shield(self._looking)

    async def _look(self) -> None:
        async with self._lock:
            began = time.monotonic()
            if began < self._due:
                return
            try:
                new = await asyncio.to_thread(self._read)  # the server goes on answering
            finally:
                self._due = after(began)
        changed = {name: text for name, text in new.items() if self.current.get(name, (0, ""))[1] != text}
        if changed:
            self.version += 1
            self.current |= {name: (self.version, text) for name, text in changed.items()}
            self._messages.clear()
            self._changed.set()
            self._changed = asyncio.Event()

    def _read(self) -> dict[str, str]:
        stamps = tuple(stamp(self.run.path / name) for name in (records.FILE, runs.CONFIG, runs.ENVIRONMENT))
        now = time.monotonic()
        if stamps == self._stamps and now - self._seen_at < STATE_EVERY:
            return {}
        self._stamps, self._seen_at = stamps, now
        facts.refresh(self.run)
        parts = {f"part {name}": json.dumps(part) for name, part in sections([self.run]).items()}
        charts = {f"chart {name}": json.dumps(figure) for name, figure in figures([self.run]).items()}
        return parts | charts

    def parts(self) -> dict[str, Section]:
        """The parts of the page as they were at the last look."""
        found = [(name.split(" ", 1), text) for name, (_, text) in self.current.items()]
        return {name: tuple(json.loads(text)) for (kind, name), text in found if kind == "part"}

    async def summary(self) -> bytes:
        """The run's summary as JSON, at most as old as a look."""
        await self.look()
        async with self._lock:  # nobody reads the run's files meanwhile
            began = time.monotonic()
            if began >= self._summary_due:
                self._summary = await asyncio.to_thread(lambda: json.dumps(summary(self.run)).encode())
                self._summary_due = after(began)
        return self._summary

    def leave(self) -> None:
        """One follower less."""
        self.watchers -= 1

    def _message(self, seen: int) -> bytes:
        """The server-sent event for whoever has version `seen`; empty if that is the current one."""
        if seen not in self._messages:
            fresh = {name: text for name, (version, text) in self.current.items() if version > seen}
            inside = ",".join(f"{json.dumps(name)}:{text}" for name, text in fresh.items())
            self._messages[seen] = f"data: {{{inside}}}\n\n".encode() if fresh else b""
        return self._messages[seen]

    async def events(self, stopping: asyncio.Event) -> AsyncGenerator[bytes, None]:
        """Server-sent events for one dashboard, which counts as a watcher: everything, then what changes."""
        seen = 0
        stop = asyncio.create_task(stopping.wait())
        try:
            await self.look()
            while not stop.done():
                changed, message = self._changed, self._message(seen)
                seen = self.version
                if message:
                    yield message
                waiting = asyncio.create_task(changed.wait())
                try:
                    await asyncio.wait({waiting, stop}, timeout=15, return_when=asyncio.FIRST_COMPLETED)
                    news = waiting.done()
                finally:
                    waiting.cancel()
                if not news:
                    yield b": still here\n\n"
        finally:
            stop.cancel()


def after(began: float) -> float:
    """When to look again after a look that began then, so that looking takes its SHARE of the time."""
    now = time.monotonic()
    return now + min(SLOWEST, max(EVERY, (now - began) * (1 / SHARE - 1)))


def stamp(path: Path) -> tuple[int, int] | None:
    """What changes when a file does."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
