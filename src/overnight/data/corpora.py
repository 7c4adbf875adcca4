"""Datasets of the hub as sources: hub.py says which files, downloads.py fetches them ahead of the reader.

fineweb-edu[:CONFIG]  fineweb[:CONFIG]  openwebtext  hf:USER/NAME[:CONFIG]     each with @REVISION if wanted
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from overnight.data.documents import Source
from overnight.data.downloads import Downloads
from overnight.data.hub import SHORT, Listing, list_files
from overnight.data.manifest import BY_FIRST_SHARD
from overnight.data.selection import FINEWEB_CONFIGS, FINEWEBS
from overnight.errors import Failure, UserError
from overnight.files import subfolder
from overnight.terminal import Status


def full_name(source: str) -> str:
    """The name with what it leaves out: 'fineweb-edu:sample-10BT' of 'fineweb-edu'."""
    dataset, config, _ = parts(source)
    if dataset in FINEWEBS and config is None:
        name, at, revision = source.partition("@")
        return f"{name.rstrip(':')}:{FINEWEB_CONFIGS[0]}{at}{revision}"
    return source


def parts(source: str) -> tuple[str, str | None, str | None]:
    """Dataset, config and revision."""
    name, _, revision = source.partition("@")
    head, _, rest = name.partition(":")
    dataset, _, config = rest.partition(":") if head == "hf" else (head, "", rest)
    if not dataset:
        raise UserError(f"{source} names no dataset: hf:USER/NAME, or hf:USER/NAME:CONFIG.")
    return SHORT.get(dataset, dataset), config or None, revision or None


def find(source: str, keep_in: Path | None, revision: str | None = None) -> "Corpus":
    """A dataset at its newest revision, or at `revision`. Its files stay in `keep_in`, if given."""
    dataset, config, asked = parts(source)
    return Corpus(full_name(source), list_files(dataset, config, revision or asked), keep_in)


class Corpus(Source):
    """The files of a listing, downloaded while they are read."""

    def __init__(self, name: str, listing: Listing, keep_in: Path | None):
        self.name, self.listing, self.keep = name, listing, keep_in is not None
        self.sizes = tuple(file.size for file in listing.files)
        self.split = BY_FIRST_SHARD if listing.dataset in FINEWEBS else None
        self.read = 0
        self._folder = keep_in
        if keep_in is not None:
            self._folder = keep_in / f"{listing.dataset.replace('/', '--')}@{listing.commit[:8]}"
        self._downloads: Downloads | None = None
        self._released = 0

    @property
    def fingerprint(self) -> str:
        return self.listing.commit

    def begin(self, folder: Path) -> None:
        if self._folder is None:
            self._folder = subfolder(folder.parent, folder.name)

    def part(self, rank: int, world_size: int) -> "Corpus":
        mine = Corpus(self.name, replace(self.listing, files=self.listing.files[rank::world_size]), None)
        mine.keep, mine._folder = self.keep, self._folder
        return mine

    def fetch(self, number: int) -> Path:
        if self._downloads is None:
            assert self._folder is not None, "begin() says where to"
            self._downloads = Downloads(self.listing, self._folder, first=number, keep=self.keep)
            self._released = number
        try:
            return self._downloads.fetch(number, Status())
        except UserError as error:
            if self._released == 0:
                raise
            # A token that has run out, say: what was done must not go with it.
            raise Failure(*str(error).splitlines()) from None

    def release(self, numbers: range) -> None:
        for number in range(self._released, numbers.stop):
            if self._downloads is not None:
                self._downloads.release(number)
        self._released = max(self._released, numbers.stop)

    def details(self) -> dict[str, Any]:
        return {
            "dataset": self.listing.dataset,
            "config": self.listing.config,
            "revision": self.listing.commit,
        }
