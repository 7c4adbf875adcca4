"""A dataset on the hub -> the files that hold its training text: where, how large, at which commit.

fineweb-edu, fineweb, openwebtext    short names; the FineWebs' configs are sample-10BT (the default),
                                     sample-100BT, sample-350BT, a crawl (CC-MAIN-2024-10) or default (all)
USER/NAME                            any dataset: the configs of its card, or else all files that can be read
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import PureWindowsPath
from typing import Any
from urllib.parse import quote

from overnight.data.selection import (
    FINEWEB_CONFIGS,
    FINEWEBS,
    KINDS,
    PACKED,
    common_folder,
    kind_of,
    matching,
    patterns_of,
    with_text,
)
from overnight.errors import Failure, UserError
from overnight.hub import NoSuchFile, Patience, persist, quiet

SHORT = {
    "fineweb-edu": "HuggingFaceFW/fineweb-edu",
    "fineweb": "HuggingFaceFW/fineweb",
    "openwebtext": "Skylion007/openwebtext",
}
SHORT_PATIENCE = 30.0  # seconds: nothing is lost yet when the list of files cannot be had


@dataclass(frozen=True)
class Remote:
    """A file of a dataset: its path in the repository, its bytes, their SHA-256 where the hub has it."""

    path: str
    size: int
    sha256: str | None = None

    def __post_init__(self) -> None:
        local = PureWindowsPath(self.path)  # knows both kinds of slashes
        if local.anchor or ".." in local.parts:
            raise Failure(f"the hub lists a file {self.path}: it would be written outside its folder.")


@dataclass(frozen=True)
class Listing:
    """The files to read of a dataset at one commit, sorted by path."""

    dataset: str
    config: str | None
    commit: str
    files: tuple[Remote, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def list_files(
    dataset: str,
    config: str | None = None,
    revision: str | None = None,
    patience: float = SHORT_PATIENCE,
    base: float = 1.0,
) -> Listing:
    """The files of a dataset's training text. Waits `base` seconds before it asks a second time.

    Raises UserError for what is not there or cannot be read, Failure when the hub does not answer.
    """
    quiet()
    dataset = SHORT.get(dataset, dataset)
    if dataset in FINEWEBS and config is None:
        config = FINEWEB_CONFIGS[0]
    hub = Hub(dataset, Patience(patience, base))
    about = hub.about(revision)
    commit = about.get("sha")
    if not isinstance(commit, str):
        raise Failure(f"the hub does not say which commit of {dataset} it has.")
    patterns = patterns_of(dataset, config, about.get("cardData") or {})
    files = {file.path: file for file in hub.files(commit, common_folder(patterns))}
    if not (chosen := with_text(files, patterns)):
        there = [sibling["rfilename"] for sibling in about.get("siblings") or []]
        raise nothing_to_read(dataset, config, matching(files, patterns) or there)
    return Listing(dataset, config, commit, tuple(files[path] for path in sorted(chosen)))


class Hub:
    """What is asked about a dataset. It goes through huggingface_hub's session (HF_ENDPOINT, token, proxies),
    not its HfApi: the listing of a tree has no time-out there."""

    def __init__(self, dataset: str, patience: Patience):
        self.dataset, self.patience = dataset, patience

    def about(self, revision: str | None, **parameters: Any) -> dict[str, Any]:
        """The commit (sha), the card's metadata (cardData) and the names of all files (siblings)."""
        at = f"/revision/{quote(revision, safe='')}" if revision else ""
        found, _ = self.ask(f"{self.dataset}{at}", parameters, revision=revision)
        if not isinstance(found, dict):
            raise self.nonsense()
        return found

    def files(self, commit: str, folder: str) -> list[Remote]:
        """The files in a folder and below it; none where there is no such folder."""
        inside = f"{folder}/" if folder else ""
        place: str | None = f"{self.dataset}/tree/{commit}/{quote(folder)}".rstrip("/")
        parameters: dict[str, Any] = {"recursive": True, "expand": False}
        entries: list[dict[str, Any]] = []
        try:
            while place:  # a page has up to 1,000 files
                page, place = self.ask(place, parameters, file=folder or "files")
                entries += [entry for entry in page if entry.get("type") == "file"]
                parameters = {}  # they are part of the next page's address
        except NoSuchFile:  # there is no such folder, or this is a mirror that has no trees
            siblings = self.about(commit, blobs=True).get("siblings") or []
            entries = [entry | {"path": entry["rfilename"]} for entry in siblings]
        try:
            return [as_remote(entry) for entry in entries if entry["path"].startswith(inside)]
        except (KeyError, TypeError):
            raise self.nonsense() from None

    def ask(
        self, place: str, parameters: dict[str, Any], file: str | None = None, revision: str | None = None
    ) -> tuple[Any, str | None]:
        """The JSON at `place` of the hub's API (or at a whole address), and the address of the next page."""
        from huggingface_hub import constants, utils

        def attempt() -> tuple[Any, str | None]:
            utils.validate_repo_id(self.dataset)
            response = utils.get_session().get(
                place if "://" in place else f"{constants.ENDPOINT}/api/datasets/{place}",
                params=parameters or None,
                headers=utils.build_hf_headers(),
                timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
            )
            utils.hf_raise_for_status(response)
            self.patience.renew()
            return response.json(), response.links.get("next", {}).get("url")

        try:
            return persist(attempt, self.patience, self.dataset, file, revision)
        except ValueError:
            raise self.nonsense() from None

    def nonsense(self) -> Failure:
        return Failure(f"the answer about {self.dataset} is not the hub's: does HF_ENDPOINT name a hub?")


def as_remote(entry: dict[str, Any]) -> Remote:
    """An entry of a tree or of a dataset's siblings. What is not kept in git itself has a SHA-256."""
    kept = entry.get("lfs") or {}
    return Remote(entry["path"], int(kept.get("size", entry["size"])), kept.get("sha256", kept.get("oid")))


def nothing_to_read(dataset: str, config: str | None, paths: list[str]) -> UserError:
    kinds = Counter(kind_of(path) or "no suffix" for path in paths if not path.startswith("."))
    there = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5)) or "no files"
    return UserError(
        f"hf:{dataset}{f' ({config})' if config else ''} has no files that Overnight reads, but {there}.",
        f"Read are {' '.join(KINDS)}, also as {' '.join(PACKED)}.",
        "Another way: download it, turn it into one of these, and use text:PATH.",
    )
