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


class Live:
    """One run, followed only while somebody looks."""

    def __init__(self, path: Path):
        self.run: Run = facts.open_run(str(path.absolute()))
        self.current: dict[str, tuple[int, str]] = {}
        """Part or chart -> (version, JSON)."""
        self.version = 0
        self.watchers = 0
        self._changed = asyncio.Event()
        self._stamps: tuple[Any, ...] = ()
        self._seen_at = -STATE_EVERY
        self._lock = asyncio.Lock()

    async def follow(self) -> None:
        """Look, for as long as the server runs."""
        while True:
            began = time.monotonic()
            if self.watchers:
                try:
                    await self.look()
                except Exception:  # whatever it is: the next record may be a better one
                    log.exception("following %s", self.run.path)
            took = time.monotonic() - began
            await asyncio.sleep(min(SLOWEST, max(EVERY, took * (1 / SHARE - 1))))

    async def look(self) -> None:
        """Take in what is new, in a thread of its own: the server goes on answering."""
        async with self._lock:
            new = await asyncio.to_thread(self._read)
        changed = {name: text for name, text in new.items() if self.current.get(name, (0, ""))[1] != text}
        if changed:
            self.version += 1
            self.current |= {name: (self.version, text) for name, text in changed.items()}
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

    async def parts(self) -> dict[str, Section]:
        """The parts of the page as they are now."""
        await self.look()
        found = [(name.split(" ", 1), text) for name, (_, text) in self.current.items()]
        return {name: tuple(json.loads(text)) for (kind, name), text in found if kind == "part"}

    async def summary(self) -> dict[str, Any]:
        await self.look()
        async with self._lock:  # nobody reads the run's files meanwhile
            return await asyncio.to_thread(summary, self.run)

    async def events(self, stopping: asyncio.Event) -> AsyncGenerator[str, None]:
        """Server-sent events for one dashboard: everything, then whatever changes."""
        seen = 0
        self.watchers += 1
        stop = asyncio.create_task(stopping.wait())
        try:
            await self.look()
            while not stop.done():
                changed = self._changed
                fresh = {name: text for name, (version, text) in self.current.items() if version > seen}
                if fresh:
                    seen = self.version
                    inside = ",".join(f"{json.dumps(name)}:{text}" for name, text in fresh.items())
                    yield f"data: {{{inside}}}\n\n"
                waiting = asyncio.create_task(changed.wait())
                try:
                    await asyncio.wait({waiting, stop}, timeout=15, return_when=asyncio.FIRST_COMPLETED)
                    news = waiting.done()
                finally:
                    waiting.cancel()
                if not news:
                    yield ": still here\n\n"
        finally:
            stop.cancel()
            self.watchers -= 1


def stamp(path: Path) -> tuple[int, int] | None:
    """What changes when a file does."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
