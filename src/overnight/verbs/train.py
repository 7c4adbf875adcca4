"""`overnight train PRESET`."""

import os
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path

from overnight.arguments import flags, parse
from overnight.config import Config
from overnight.errors import DONE, UserError, near
from overnight.presets import PRESETS
from overnight.stop import Stop, final_errors, is_rank
from overnight.terminal import say


def run(arguments: list[str]) -> int:
    preset, rest = find_preset(arguments, PRESETS, Config)
    if preset is None:
        list_presets("train")
        return DONE
    wanted = parse(Config, f"overnight train {preset}", rest, default=PRESETS[preset]())
    with Stop() as stop, final_errors():
        return train(wanted, preset, arguments, stop)


def train(wanted: Config, preset: str, arguments: list[str], stop: Stop) -> int:
    """Train here, or in ranks of their own."""
    from overnight import launch, runs, start, world  # torch, only now
    from overnight.lock import Lock
    from overnight.train import say_complete
    from overnight.train import train as train_run

    stop.ready()
    path = runs.run_path(wanted.run)
    if is_rank() or (wanted.processes == 1 and not wanted.max_restarts):
        with world.connect(wanted.device, wanted.parallel == "fsdp") as here, ExitStack() as stack:
            lock = Lock(path)
            if here.is_main:
                stack.enter_context(lock)
            decided = start.decide(wanted, preset, here)
            code = say_complete(decided, here) if decided.complete else train_run(decided, here, stop, lock)
        if here.is_main and code == DONE and not decided.complete:
            in_the_morning(path)
        return launch.leave_quietly(code) if is_rank() else code
    with Lock(path):  # its ranks will take it themselves
        imagined = world.imagine(wanted.device, wanted.processes)
        decided = start.decide(wanted, preset, imagined)
        if decided.complete:
            return say_complete(decided, imagined)
    return launch.torchrun(decided.run, wanted.processes, wanted.max_restarts, ["train", *arguments])


def in_the_morning(path: Path) -> None:
    """Show what has come of a run that is done, whose lock is free: looking at it would give it up."""
    from overnight.report import facts
    from overnight.verbs.report import terminal

    try:
        terminal([facts.open_run(f"{path}{os.sep}")])
    except Exception as error:  # a run that is done is done, whatever is wrong with its picture
        say(f"Nothing could be shown of it: {type(error).__name__}: {error}")


def list_presets(verb: str) -> None:
    """The help of a verb that no preset was given to."""
    described = {name: (function.__doc__ or "").split("\n")[0] for name, function in PRESETS.items()}
    say(f"usage: overnight {verb} PRESET [--option value ...]\n")
    say("\n".join(f"  {name:22} {line}" for name, line in described.items()))
    say(f"\novernight {verb} PRESET --help lists the options with the preset's values.")


def find_preset(
    arguments: list[str], presets: Collection[str], kind: type[Config], verb: str = "train"
) -> tuple[str | None, list[str]]:
    """The preset's name and the other arguments, which are options of `kind`; None if only help is asked
    for."""
    alone = flags(kind)  # the options that no value follows
    words = [
        i
        for i, (before, word) in enumerate(zip(["", *arguments], arguments, strict=False))
        if not word.startswith("-") and (not before.startswith("-") or before in alone or "=" in before)
    ]
    named = [i for i in words if arguments[i] in presets] or words
    if named and arguments[named[0]] in presets:
        return arguments[named[0]], arguments[: named[0]] + arguments[named[0] + 1 :]
    if {"-h", "--help"} & set(arguments):
        return None, []
    if not words or words[0] > 0:
        raise UserError(f"which preset? overnight {verb} PRESET --option ..., one of {', '.join(presets)}.")
    hint = near(arguments[0], presets)
    raise UserError(f"unknown preset '{arguments[0]}'.{hint} The presets are {', '.join(presets)}.")
