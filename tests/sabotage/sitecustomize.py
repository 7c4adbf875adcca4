"""Kills a process of Overnight at a chosen moment. Python imports this file first where its folder is on
PYTHONPATH; KILL_AT="MOMENT:N" says when (the N-th time), KILL_RANK which rank (0, where it is not set).
NAN_IN="6 7 8" makes that rank's losses in these calls of the model no numbers.
SET="overnight.data.prepare:COMMIT_EVERY=0.3" gives a number in a module another value.
SLOW="overnight.step:train_step=60" lets a function compute for so many seconds first, but for its first call.
PICKLES=FILE collects there what pickles that are loaded name: the classes and functions that they call.
"""

import hashlib
import importlib.abc
import importlib.machinery
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at(number: int, before: Callable[..., Any]) -> Callable[[Callable], Callable]:
    """Wrap a function so that its `number`-th call runs `before` with the function and its arguments, and
    dies."""
    calls = itertools.count(1)

    def wrap(function: Callable) -> Callable:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            if next(calls) == number:
                before(function, *arguments, **named)
                die()
            return function(*arguments, **named)

        return wrapped

    return wrap


def nothing(function: Callable, *arguments: Any, **named: Any) -> None: ...


def all_of_it(function: Callable, *arguments: Any, **named: Any) -> None:
    function(*arguments, **named)


def half_a_line(flush: Callable, records: Any) -> None:
    records._file.write(records._waiting[: len(records._waiting) // 2])


def half_the_tensors(write_tensors: Callable, tensors: Any, path: Any) -> None:
    write_tensors(tensors, path)
    os.truncate(path, path.stat().st_size // 2)


def half_the_folder(rmtree: Callable, path: Any, **_: Any) -> None:
    next(path.iterdir()).unlink()


def some_windows(validation: Callable, *arguments: Any) -> None:
    *rest, _ = arguments
    seen = itertools.count()
    list(validation(*rest, lambda done, total: die() if next(seen) == 1 else None))


# moment: the module, what in it, and how far that comes
MOMENTS = {
    "record": ("overnight.records", "Records.flush", half_a_line),
    "tensors": ("overnight.checkpoint", "write_tensors", half_the_tensors),
    "state": ("overnight.checkpoint", "sealed", nothing),
    "published": ("overnight.checkpoint", "sync", nothing),
    "prune": ("overnight.checkpoint", "shutil.rmtree", half_the_folder),
    "evaluation": ("overnight.evaluator", "validation", some_windows),
    "sample": ("overnight.evaluator", "collect", nothing),
    "config": ("overnight.start", "write_synced", nothing),
    "rewind": ("overnight.records", "write_synced", nothing),
    "rewound": ("overnight.records", "write_synced", all_of_it),
    "update": ("overnight.step", "train_step", all_of_it),
    "done": ("overnight.journal", "Journal.done", nothing),
}


class Sabotage(importlib.abc.MetaPathFinder):
    """Lets modules be found as ever, and changes something in one of them when it has been imported."""

    def __init__(self, module: str, name: str, change: Callable[[Any], Any]):
        self.module, self.name, self.change = module, name, change

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            load(module)
            owner = module
            *holders, last = self.name.split(".")
            for holder in holders:
                owner = getattr(owner, holder)
            setattr(owner, last, self.change(getattr(owner, last)))

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if "KILL_AT" in os.environ and os.environ.get("RANK", "0") == os.environ.get("KILL_RANK", "0"):
    moment, _, number = os.environ["KILL_AT"].partition(":")
    module, name, before = MOMENTS[moment]
    sys.meta_path.insert(0, Sabotage(module, name, at(int(number), before)))
if "NAN_IN" in os.environ and os.environ.get("RANK", "0") == os.environ.get("KILL_RANK", "0"):

    def poisoned(forward: Callable) -> Callable:
        calls, bad = itertools.count(1), set(map(int, os.environ["NAN_IN"].split()))
        return lambda *arguments: forward(*arguments) * (float("nan") if next(calls) in bad else 1.0)

    sys.meta_path.insert(0, Sabotage("overnight.models.gpt2", "GPT.forward", poisoned))
if "SET" in os.environ:
    module, _, rest = os.environ["SET"].partition(":")
    name, _, number = rest.partition("=")
    value = float(number)
    sys.meta_path.insert(0, Sabotage(module, name, lambda _: value))
if "SLOW" in os.environ:
    module, _, rest = os.environ["SLOW"].partition(":")
    name, _, seconds = rest.partition("=")

    def slowed(function: Callable) -> Callable:
        calls = itertools.count()

        def wrapped(*arguments: Any, **named: Any) -> Any:
            until = time.monotonic() + (float(seconds) if next(calls) else 0.0)
            while time.monotonic() < until:  # deaf, as a library that computes: Python's handlers do not run
                hashlib.pbkdf2_hmac("sha256", b"", b"", 4_000_000)
            return function(*arguments, **named)

        return wrapped

    sys.meta_path.insert(0, Sabotage(module, name, slowed))
if "PICKLES" in os.environ:

    def collect(event: str, arguments: tuple) -> None:
        if event == "pickle.find_class":
            with open(os.environ["PICKLES"], "a") as file:
                file.write(f"{sys.argv[:2]} loads {'.'.join(arguments)}\n")

    sys.addaudithook(collect)
