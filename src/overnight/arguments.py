"""Command line -> dataclass: tyro does the parsing, its boxed errors come down to a line or two."""

import contextlib
import io
import re
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import tyro

from overnight.errors import UserError, near, refuse

T = TypeVar("T")
POSITIONAL = get_args(tyro.conf.Positional[str])[1]  # the marker in Positional's annotations


def parse(kind: type[T], prog: str, arguments: list[str], default: T | None = None) -> T:
    """Parse `arguments` into `kind`; `default` gives its values where nothing is said.

    Raises UserError for unknown options (all of them, with the nearest known) and bad values.
    """
    known = option_names(kind)
    unknown = [
        word.split("=")[0]
        for word in arguments
        if re.match(r"--[a-zA-Z]", word) and word.split("=")[0].replace("_", "-") not in (*known, "--help")
    ]
    refuse(
        f"{prog}: unknown option {word}.{near(negation(word), known)} {prog} --help lists all."
        for word in unknown
    )
    extra: dict[str, Any] = {} if default is None else {"default": default}
    caught = io.StringIO()
    try:
        with contextlib.redirect_stderr(caught):
            return tyro.cli(kind, prog=prog, args=arguments, **extra)
    except SystemExit as error:
        if not error.code:  # --help
            raise
        raise UserError(f"{prog}: {flatten(caught.getvalue())} {prog} --help lists the options.") from None


def negation(word: str) -> str:
    """Return --optim.no-fused for --no-optim.fused, and any other word unchanged."""
    return re.sub(r"--no-((?:[\w-]+\.)+)", r"--\1no-", word)


def option_names(kind: Any, prefix: str = "") -> list[str]:
    """The options of a dataclass as tyro spells them: '--model.n-head', '--model.no-bias' and so on."""
    hints = get_type_hints(kind, include_extras=True)
    names = []
    for one in fields(kind):
        hint, name = hints[one.name], one.name.replace("_", "-")
        if POSITIONAL in get_args(hint):
            continue
        hint = getattr(hint, "__origin__", hint) if get_origin(hint) is Annotated else hint
        if is_dataclass(hint):
            names += option_names(hint, f"{prefix}{name}.")
        else:
            names += [f"--{prefix}{name}"] + ([f"--{prefix}no-{name}"] if hint is bool else [])
    return names


def flags(kind: Any) -> list[str]:
    """The options that take no value."""
    negations = [name for name in option_names(kind) if re.search(r"(--|\.)no-", name)]
    return negations + [re.sub(r"(--|\.)no-", r"\1", name) for name in negations]


def flatten(box: str) -> str:
    """The message in one of tyro's boxes, on one line."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", box)
    # Without Unicode the boxes are drawn with |, + and -.
    lines = [re.sub(r"[│╭╮╰╯─]|^[|+]|[|+]$|-{3,}", " ", line.strip()).strip() for line in text.splitlines()]
    message = []
    for line in [line for line in lines if line][1:]:  # the first is the box's title
        if line.startswith(("For full helptext", "Argument helptext", "Perhaps you meant")):
            break
        message.append(line)
    joined = " ".join(message) or "wrong arguments"
    return joined if joined.endswith(".") else joined + "."
