"""The files of a dataset on the hub -> those that hold its text for training."""

import posixpath
import re
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any

from overnight.errors import UserError, near

FINEWEBS = ("HuggingFaceFW/fineweb-edu", "HuggingFaceFW/fineweb")
FINEWEB_CONFIGS = ("sample-10BT", "sample-100BT", "sample-350BT", "default")

KINDS = (".parquet", ".jsonl", ".json", ".txt")  # read if a dataset has them; the first that it has
PACKED = (".gz", ".zst")
ABOUT_IT = ("dataset_info.json", "dataset_infos.json")  # written by `datasets`: no text
HELD_OUT = ("test", "testing", "validation", "valid", "val", "dev", "eval", "evaluation")

MAGIC = re.compile(r"\*\*/|\*\*|\*|\?|\[!?[^]/]+\]")


def patterns_of(dataset: str, config: str | None, card: dict[str, Any]) -> list[str]:
    """The patterns of paths that a config stands for; none where the card says nothing."""
    known = {
        str(c.get("config_name", "default")): c for c in card.get("configs") or [] if isinstance(c, dict)
    }
    if dataset in FINEWEBS and config is not None:
        if match := re.fullmatch(r"sample-(\d+BT)", config):
            return [f"sample/{match[1]}/*.parquet"]
        if config.startswith("CC-MAIN-"):
            return [f"data/{config}/*.parquet"]
        if config == "default":
            return ["data/*/*.parquet"]
        known |= {name: {} for name in FINEWEB_CONFIGS}
    if config is None and len(known) > 1:
        marked = [name for name, value in known.items() if value.get("default")]
        config = next(iter(marked), "default" if "default" in known else None)
        if config is None:
            raise UserError(f"hf:{dataset} has several configs: say which ({some(known)}).")
    if config is not None and config not in known:
        if not known:
            raise UserError(f"hf:{dataset} has no configs: leave out {config}.")
        raise UserError(
            f"hf:{dataset} has no config {config}.{near(config, known)}", f"It has {some(known)}."
        )
    if not known:
        return []
    chosen = known[config] if config is not None else next(iter(known.values()))
    return list(data_files(dataset, chosen))


def data_files(dataset: str, config: dict[str, Any]) -> Iterator[str]:
    """The patterns of a card's config: data_files is a pattern, a list of them, or has them by split."""
    inside = f"{config['data_dir']}/" if config.get("data_dir") else ""
    entries = config.get("data_files") or "**"
    if isinstance(entries, dict):
        entries = [{"split": split, "path": path} for split, path in entries.items()]
    entries = [entries] if isinstance(entries, str) else entries
    splits = {str(entry["split"]) for entry in entries if isinstance(entry, dict) and "split" in entry}
    wanted = {"train"} if "train" in splits else splits - set(HELD_OUT)
    if splits and not wanted:
        raise UserError(f"hf:{dataset} has nothing to train on there, only {some(splits)}.")
    for entry in entries:
        split = str(entry.get("split")) if isinstance(entry, dict) else None
        paths = entry.get("path", []) if isinstance(entry, dict) else entry
        if split is None or split in wanted or not splits:
            for path in [paths] if isinstance(paths, str) else paths:
                yield posixpath.normpath(f"{inside}{path}").lstrip("/")


def as_regex(pattern: str) -> re.Pattern[str]:
    """A pattern as `datasets` understands it: * and ? stay in a folder, ** does not, a folder means all in
    it. [ab] and [!ab] as in a shell."""
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts, at = [], 0
    for match in MAGIC.finditer(pattern):
        parts.append(re.escape(pattern[at : match.start()]))
        parts.append(meaning.get(match[0]) or match[0].replace("[!", "[^"))
        at = match.end()
    parts.append(re.escape(pattern[at:]))
    below = "" if MAGIC.search(pattern.rpartition("/")[2]) else "(?:/.*)?"
    return re.compile("".join(parts) + below)


def common_folder(patterns: Iterable[str]) -> str:
    """The deepest folder that all patterns are in: no more of a large dataset needs to be listed."""
    heads = [MAGIC.split(pattern)[0].rpartition("/")[0] for pattern in patterns]
    return posixpath.commonpath(heads) if heads else ""


def matching(paths: Iterable[str], patterns: list[str]) -> list[str]:
    """The paths that the patterns mean, or all where there are no patterns; never hidden ones."""
    wanted = [as_regex(pattern) for pattern in patterns or ["**"]]
    return [
        path
        for path in paths
        if any(pattern.fullmatch(path) for pattern in wanted) and not re.search(r"(^|/)(\.|__)", path)
    ]


def with_text(paths: Iterable[str], patterns: list[str]) -> list[str]:
    """Of the paths that are meant, those that can be read: of one kind, as a dataset is often there in
    several. Where only their names tell, without those held out for testing."""
    found = [path for path in matching(paths, patterns) if PurePosixPath(path).name not in ABOUT_IT]
    kinds = {kind_of(path) for path in found}
    kind = next((kind for kind in KINDS if kind in kinds), None)
    readable = [path for path in found if kind_of(path) == kind]
    return readable if patterns else without_held_out(readable)


def kind_of(path: str) -> str:
    """'.jsonl' of 'a.jsonl' and 'a.jsonl.gz'."""
    name = PurePosixPath(path.lower())
    return name.with_suffix("").suffix if name.suffix in PACKED else name.suffix


def without_held_out(paths: list[str]) -> list[str]:
    """Without the paths that name a split for testing, if others name the one for training."""

    def words(path: str) -> set[str]:
        return set(re.split(r"[^a-z]+", path.lower()))

    if not any("train" in words(path) for path in paths):
        return paths
    return [path for path in paths if "train" in words(path) or words(path).isdisjoint(HELD_OUT)]


def some(names: Iterable[str]) -> str:
    """The first few names."""
    ordered = list(names)
    return ", ".join(ordered[:8]) + (f" ... {len(ordered)} in all" if len(ordered) > 8 else "")
