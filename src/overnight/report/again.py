"""The commands that make a run again, for a reader to paste into a shell.

Most words come from the run's folder, which may be a stranger's: each is quoted, none can become an option,
and a command with a word that no command line can hold is left out. Text in a comment is quoted too, because
zsh, as people type into it, takes a comment for a command.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from overnight import runs
from overnight.data import SHARD_TOKENS
from overnight.presets import PRESETS
from overnight.report.facts import Run
from overnight.visible import as_argument, one_line, shell_line, shell_word

COMMIT = re.compile(r"([0-9a-f]{7,64})(-dirty)?")
LONGEST = 20_000  # characters of a command
QUOTED = 500  # characters of a comment's text


def lines(run: Run) -> list[str]:
    """Commands, and comments that begin with #; none where the run's config or preset is not known."""
    if not (train := train_words(run)) or not run.config:
        return []
    report = ["overnight", "report", as_argument(runs.run_path(again_name(run.config.run)))]
    return [
        *checkout(run.environment.get("git")),
        *(typed(prepare_words(run), "prepares its data") if run.data else ()),
        *changes(run),
        *typed(train, "trains it"),
        *typed(report, "reports on it"),
    ]


def command(run: Run) -> str | None:
    """The `overnight train` that begins such a run from nothing, beside this one."""
    words = train_words(run)
    return shell_line(*words) if words and can_be_typed(words) else None


def train_words(run: Run) -> list[str]:
    if run.config is None or run.preset not in PRESETS:
        return []
    values = {name: now for name, (_, now) in run.changed().items()}
    values["run"] = again_name(run.config.run)
    return ["overnight", "train", run.preset, *(word for item in values.items() for word in option(*item))]


def prepare_words(run: Run) -> list[str]:
    """The `overnight prepare` that makes the run's data; none where its source is not known."""
    if run.data is None or run.config is None:
        return []
    request = run.data.manifest.request
    source, tokenizer, shard = (request.get(name) for name in ("source", "tokenizer", "shard_tokens"))
    if not isinstance(source, str) or not source or source.startswith("-"):
        return []
    if tokenizer not in ("gpt2", "char") and not str(tokenizer).startswith("bpe:"):  # it was a file
        tokenizer = str(run.path / runs.TOKENIZER)
    # A manifest names the version of Python that the standard library is of, a command cannot.
    words = ["overnight", "prepare", "stdlib" if source.startswith("stdlib of Python ") else source]
    words += [*option("tokenizer", tokenizer), *option("out", run.config.data)]
    return words + (option("shard_tokens", shard) if type(shard) is int and shard != SHARD_TOKENS else [])


def again_name(name: str) -> str:
    return f"{name.rstrip('/')}-again"


def option(name: str, value: Any) -> list[str]:
    """The words of --name value."""
    dashed = name.replace("_", "-")
    if isinstance(value, bool):
        section, _, last = dashed.rpartition(".")
        return [f"--{section + '.' if section else ''}{'' if value else 'no-'}{last}"]
    if isinstance(value, tuple):
        return [f"--{dashed}", *map(str, value)]
    return [f"--{dashed}={value}"] if str(value).startswith("-") else [f"--{dashed}", str(value)]


def typed(words: Sequence[str], does: str) -> Iterator[str]:
    """The command of these words, or a comment in its place."""
    if words and can_be_typed(words):
        yield shell_line(*words)
    else:
        yield f"# The command that {does} is left out: no command line can hold what the run or its data say."


def can_be_typed(words: Sequence[str]) -> bool:
    try:
        return sum(map(len, words)) <= LONGEST and not any(b"\0" in os.fsencode(word) for word in words)
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def checkout(commit: Any) -> Iterator[str]:
    """`commit`: what environment.json says, which is used only where it is one."""
    if isinstance(commit, str) and (found := COMMIT.fullmatch(commit)):
        if found[2]:
            yield "# Files of this commit had been changed when the run began."
        yield shell_line("git", "checkout", found[1])


def changes(run: Run) -> Iterator[str]:
    """A comment on what changed at resumes."""
    changed: dict[str, Any] = {}
    for event in run.history.events_named("resume"):
        one = event["detail"].get("changes")
        changed |= one if isinstance(one, dict) else {}
    if changed:
        text = shell_word(one_line(detail(changed)[: 4 * QUOTED])[:QUOTED])
        yield f"# Settings changed when the run was resumed, which the command below does not repeat: {text}"


def detail(value: dict[str, Any]) -> str:
    """What an event says, on a line."""
    return ", ".join(
        f"{name}: {json.dumps(one, ensure_ascii=False)}" for name, one in value.items() if one != {}
    )
