"""A listing of the hub's files -> the files themselves, one after another, some ahead of their reader.

Why not hf_hub_download: since huggingface_hub 1.0 it begins a broken download anew under another name, and
gives up after a few tries. Here the part that is on the disk is continued, also after a kill.
"""

import errno
import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path
from typing import IO

from overnight.data.hub import Listing, Remote
from overnight.errors import Failure
from overnight.files import clear_disk_errors, open_real, sha256_file, subfolder, sync
from overnight.hub import Broken, Patience, persist, quiet
from overnight.terminal import Status, duration, size

AHEAD = 4  # files on their way or waiting, beside the one that is read
PATIENCE = 600.0  # seconds without a new byte after which a download fails


@dataclass(eq=False)
class Download:
    """One file on its way; written by its thread, read by all."""

    number: int
    remote: Remote
    have: int = 0  # bytes on the disk
    trouble: str = ""  # what it waits for
    whole: bool = False
    error: Exception | None = None


class Closed(Exception):
    """Nobody wants the file any more."""


class Downloads:
    """The files of a listing in `folder`, from number `first` on.

    At most `ahead` + 1 of them are there at any time, if each is released when it has been read and none is
    kept. What lies in the folder from before is used: a whole file as it is, a part to go on from. Downloads
    run in daemon threads: they end with the process, or soon after `close`.
    """

    def __init__(
        self,
        listing: Listing,
        folder: Path,
        first: int = 0,
        ahead: int = AHEAD,
        keep: bool = False,
        patience: float = PATIENCE,
        base: float = 1.0,
    ):
        self.listing, self.folder, self.ahead, self.keep = listing, folder, ahead, keep
        self.patience, self.base = patience, base
        self.done_bytes = 0  # that came in this process
        self._next = first  # the first file that was not started yet
        self._wanted = first  # the last that was asked for
        self._started: dict[int, Download] = {}  # and not yet released
        self._changed = threading.Condition()
        self._closed = threading.Event()
        if not keep:  # a kill may have come between a file's last token and its release
            for number in range(first):
                self._remove(self.path(number))

    def fetch(self, number: int, status: Status | None = None) -> Path:
        """File `number`, whole and checked; waits for it, and sees to it that the next ones come.

        Raises UserError if it cannot be had, Failure if it did not come after all patience.
        """
        with self._changed:
            job = self._started.get(number)
            if job is None or job.error is not None:  # what failed while nobody waited is tried again
                job = self._start(number)
            self._wanted, self._next = number, max(self._next, number + 1)
            self._fill()
        began, had = time.monotonic(), job.have
        while not self._settled(job):
            if status is not None:
                status.update(lambda: self._progress(job, had, began))
        if status is not None:
            status.clear()
        if job.error is not None:
            raise job.error
        return self.path(number)

    def release(self, number: int) -> None:
        """File `number` has been read: it goes (unless all are kept), and another one may come."""
        with self._changed:
            self._started.pop(number, None)
            if not self.keep:
                self._remove(self.path(number))
            self._fill()

    def close(self) -> None:
        """Let the downloads end; what they have of their files stays."""
        self._closed.set()

    def __enter__(self) -> "Downloads":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def path(self, number: int) -> Path:
        """Where file `number` is when it is there. Raises OSError where a folder of it is a symbolic link,
        because what is removed or replaced there would not be ours."""
        path = self.folder / self.listing.files[number].path
        for folder in path.parents[: len(path.relative_to(self.folder).parts)]:
            if folder.is_symlink():
                raise OSError(errno.ELOOP, "it is a symbolic link", str(folder))
        return path

    def _partial(self, path: Path) -> Path:
        """Where it grows. The commit is in the name: parts of two versions are never put together."""
        return path.with_name(f".{path.name}.{self.listing.commit[:8]}.partial")

    def _remove(self, path: Path) -> None:
        """The file, its part, and the folders that are empty then."""
        path.unlink(missing_ok=True)
        self._partial(path).unlink(missing_ok=True)
        for folder in path.parents:
            try:
                folder.rmdir()
            except OSError:
                break  # it is not empty, or was never made
            if folder == self.folder:
                break

    def _fill(self) -> None:
        """Start what comes next, as far as it may be there. Holds the lock."""
        end = min(self._wanted + self.ahead + 1, len(self.listing.files))
        while self._next < end and len(self._started) <= self.ahead:
            self._start(self._next)
            self._next += 1

    def _start(self, number: int) -> Download:
        quiet()  # by one thread, before there are others
        job = self._started[number] = Download(number, self.listing.files[number])
        threading.Thread(target=self._run, args=(job,), name=f"download {number}", daemon=True).start()
        return job

    def _settled(self, job: Download) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: job.whole or job.error is not None, timeout=0.2)

    def _progress(self, job: Download, had: int, began: float) -> str:
        line = f"downloading file {job.number + 1} of {len(self.listing.files)}"
        if job.trouble:
            return f"{line}: {job.trouble}"
        rate = (job.have - had) / max(time.monotonic() - began, 1e-9)
        line += f": {size(job.have)} of {size(job.remote.size)}"
        return (
            f"{line}, {size(rate)}/s, {duration((job.remote.size - job.have) / rate)} left" if rate else line
        )

    def _run(self, job: Download) -> None:
        """What a thread does: all that goes wrong is handed to `fetch`."""
        try:
            with clear_disk_errors(f"downloading {job.remote.path}"):
                self._get(job)
            job.whole = True
        except Exception as error:
            job.error = error
        with self._changed:
            self._changed.notify_all()

    def _get(self, job: Download) -> None:
        """Make the file whole, whatever is there already."""
        path, remote = self.path(job.number), job.remote
        partial = self._partial(path)
        if path.is_file() and right(path, remote):
            return
        path.unlink(missing_ok=True)
        for tries_left in (1, 0):
            self._persist(job, partial)
            job.trouble = "checking its content"
            if right(partial, remote):
                sync(partial)
                os.replace(partial, path)
                return
            partial.unlink()
            if not tries_left:
                raise Failure(
                    f"{remote.path} of hf:{self.listing.dataset} came with the wrong content, twice.",
                    "Something on the way may change it (a proxy, a mirror in HF_ENDPOINT).",
                    "The same command tries again and goes on from there.",
                )

    def _persist(self, job: Download, partial: Path) -> None:
        """Receive until all is there."""
        patience = Patience(self.patience, self.base)
        best = partial.stat().st_size if partial.exists() else 0

        def pause(seconds: float, why: str) -> None:
            job.trouble = f"{why}; again in {duration(seconds)}"
            if self._closed.wait(seconds):
                raise Closed

        def attempt() -> None:
            nonlocal best
            for have in self._receive(job, partial):
                if have > best:  # bytes that came before, and now again, are no progress
                    best = have
                    patience.renew()

        persist(attempt, patience, self.listing.dataset, job.remote.path, pause=pause)

    def _receive(self, job: Download, partial: Path) -> Iterator[int]:
        """One request for the rest of a file; yields how much is there. What comes is on the disk at once, so
        that neither a broken connection nor a kill loses it."""
        from huggingface_hub import constants, hf_hub_url, utils

        remote, listing = job.remote, self.listing
        url = hf_hub_url(listing.dataset, remote.path, repo_type="dataset", revision=listing.commit)
        with self._open(partial) as file:
            have = job.have = file.seek(0, os.SEEK_END)
            if have >= remote.size:
                return
            # Compressed on the way, the bytes could not be counted.
            headers = utils.build_hf_headers() | {"Accept-Encoding": "identity"}
            if have:
                headers["Range"] = f"bytes={have}-"
            timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
            with utils.get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
                utils.hf_raise_for_status(response)
                have = start_of(response.headers.get("Content-Range", ""))  # 0 if all of it comes again
                if have > job.have:
                    raise Broken(f"it sends from byte {have:,} on, not from {job.have:,}")
                file.seek(have)
                file.truncate()
                for chunk in response.iter_bytes():
                    if self._closed.is_set():
                        raise Closed
                    file.write(chunk)
                    file.flush()
                    have += len(chunk)
                    with self._changed:
                        job.have, job.trouble = have, ""
                        self.done_bytes += len(chunk)
                    yield have
                    if have > remote.size:
                        return  # of another content, and perhaps without an end
        if have < remote.size:
            raise Broken(f"it ended after {have:,} of {remote.size:,} bytes")

    def _open(self, partial: Path) -> IO[bytes]:
        """A part, to go on with. Locked, because `release` takes empty folders away."""
        with self._changed:
            folder = self.folder
            folder.mkdir(parents=True, exist_ok=True)
            for name in partial.parent.relative_to(folder).parts:
                folder = subfolder(folder, name)
            return BufferedRandom(open_real(partial))  # type: ignore[arg-type]


def start_of(content_range: str) -> int:
    """5 of 'bytes 5-9/10'."""
    match = re.match(r"bytes (\d+)-", content_range)
    return int(match[1]) if match else 0


def right(path: Path, remote: Remote) -> bool:
    """Whether a file has the size and, where the hub knows it, the SHA-256 that it should have."""
    return path.stat().st_size == remote.size and remote.sha256 in (None, sha256_file(path))
