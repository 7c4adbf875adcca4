"""Whether the shards are still what `prepare` wrote, while a run reads them.

Between steps the stamps of the files (size, times of change, identity) are compared with those at the start,
which takes microseconds per shard; a file whose stamp differs is hashed at once. In the background a thread
of low priority hashes all of them every hour, and finds what no stamp shows: a bad disk. The validation split
comes first, the others in random order, so that a run of many short processes has them all compared.
"""

import hashlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from overnight.data.manifest import Data
from overnight.data.shards import RESTORE, ChangedData
from overnight.files import open_regular, reason, sha256_file
from overnight.machine import step_back

LOOK_EVERY = 1.0  # seconds between two comparisons of stamps
SHARE = 0.01  # of one processor's time, at most, goes into hashing
PASS_EVERY = 3600.0  # seconds from the start of one pass over all shards to the next
PIECE = 1 << 20  # bytes
AT_ONCE = 256 << 20  # bytes that are compared at the end of a run

Stamp = tuple[int, int, int, int]


class Integrity:
    """Watches the shards of `data` until `close`.

    active: whether this process does (one per host). say: called with a message when a shard was modified
    and then restored; it runs in the thread that calls `look`.
    """

    def __init__(self, data: Data, active: bool = True, say: Callable[[str], None] = lambda line: None):
        entries = data.manifest.shards if active else []
        self._sha256 = {data.folder / entry["file"]: entry["sha256"] for entry in entries}
        self._val = [data.folder / entry["file"] for entry in entries if entry["split"] == "val"]
        self._stamps = {path: stamp(path) for path in self._sha256}
        self._hashed: set[Path] = set()
        self._say = say
        self._looked = time.monotonic()
        self.problem = ""
        """What is wrong with a shard; empty while nothing is."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._hash_all, name="integrity", daemon=True)
        if active:
            self._thread.start()

    def look(self, now: bool = False) -> str:
        """Compare the stamps, if the last comparison is a while ago or `now`; return `problem`."""
        if not self.problem and (now or time.monotonic() - self._looked > LOOK_EVERY):
            for path, before in self._stamps.items():
                if stamp(path) != before:
                    self._compare(path)
            self._looked = time.monotonic()
        return self.problem

    def settle_validation(self) -> None:
        """Make sure that the validation split is intact before a result on it is believed. Raises
        ChangedData."""
        self._settle(self._val)

    def settle_rest(self) -> tuple[int, int]:
        """At the end of a run, compare the shards that the background thread has not compared yet, unless
        they have more than AT_ONCE bytes. Returns the number of compared shards and of all shards. Raises
        ChangedData."""
        rest = {path: found for path, found in self._stamps.items() if path not in self._hashed}
        size = sum(found[0] for found in rest.values() if found)
        self._settle(rest if size <= AT_ONCE else ())
        return len(self._hashed), len(self._sha256)

    def _settle(self, paths: Iterable[Path]) -> None:
        self.look(now=True)
        for path in paths:
            if path not in self._hashed and not self.problem:
                self._compare(path)
        if self.problem:
            raise ChangedData(self.problem, RESTORE)

    def close(self) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _compare(self, path: Path) -> None:
        """Hash a shard now. Called by the thread that reads the shards."""
        before, known = stamp(path), self._stamps[path]
        try:
            digest = sha256_file(path)
        except OSError as error:
            self.problem = self.problem or f"the shard {path} cannot be read any more: {reason(error)}."
            return
        self._judge(path, digest)
        if not self.problem:
            self._stamps[path] = before
            if before and known and before[:2] != known[:2]:
                self._say(
                    f"the shard {path} was modified, or its modification time was. Its content matches the "
                    "manifest, but earlier steps may have read different tokens."
                )

    def _judge(self, path: Path, digest: str) -> None:
        """Take note of the hash of a shard."""
        if digest == self._sha256[path]:
            self._hashed.add(path)
        elif not self.problem:
            self.problem = f"the shard {path} has changed: its SHA-256 is not the one in the manifest."

    def _hash_all(self) -> None:
        step_back()
        while not self._over.is_set():
            began = time.monotonic()
            others = [path for path in self._sha256 if path not in self._val]
            random.SystemRandom().shuffle(others)
            for path in (*self._val, *others):
                try:
                    digest = self._hash_slowly(path)
                except OSError as error:
                    self.problem = self.problem or f"the shard {path} cannot be read: {reason(error)}."
                    return
                if self._over.is_set():
                    return
                self._judge(path, digest)
                if self.problem:
                    return
            self._over.wait(max(1.0, PASS_EVERY - (time.monotonic() - began)))

    def _hash_slowly(self, path: Path) -> str:
        """SHA-256 of a file, with a pause after each piece."""
        digest = hashlib.sha256()
        with open_regular(path) as file:
            began = time.monotonic()
            while piece := file.read(PIECE):
                digest.update(piece)
                if self._over.wait((time.monotonic() - began) * (1 / SHARE - 1)):
                    break
                began = time.monotonic()
        return digest.hexdigest()


def stamp(path: Path) -> Stamp | None:
    """What changes when a file does; None where it is gone. The second time cannot be set back (`cp -p`)."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
