"""The `overnight` command: parses, calls, exits."""

import errno
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from io import TextIOWrapper

from overnight.errors import DONE, FAILURE, INTERRUPTED, SAVED, WRONG_INPUT, Preempted, UserError, near
from overnight.search_path import leave_out_current_folder
from overnight.terminal import complain, say

# What a path may be that an option or a file gives; what may be wrong with the disk or the system.
WRONG_PATH = {errno.ENAMETOOLONG, errno.EACCES, errno.ELOOP}
BROKEN = {errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, getattr(errno, "ESTALE", errno.EIO)}
VERBS = {
    "prepare": ("SOURCE", "documents -> tokens -> shards in data/NAME/"),
    "train": ("PRESET", "a run in runs/NAME/; the same command again goes on where it was"),
    "eval": ("MODEL", "validation loss, HellaSwag, LAMBADA, perplexity, lm-eval"),
    "sample": ("MODEL", "text from a prompt"),
    "inspect": ("MODEL", "a look into a checkpoint: tensors, position embeddings"),
    "export": ("MODEL", "weights for other people's programs"),
    "plan": ("PRESET", "parameters, FLOPs, memory, time and cost, before anything is spent"),
    "ladder": ("", "the lecture's speed ladder, rung by rung, on this machine"),
    "report": ("RUN...", "the verdict, curves and samples: one HTML file"),
    "serve": ("RUN", "live dashboard, playground, OpenAI's completions"),
    "doctor": ("", "what this machine can do, and what would go wrong"),
}


def main() -> None:
    """Entry point of the command."""
    leave_out_current_folder()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # text that the terminal's encoding lacks is shown, not fatal
            stream.reconfigure(errors="backslashreplace")
    code = run(sys.argv[1:])
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"):  # too late: Python is taking itself down
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Do what the arguments say; the exit code (errors.py)."""
    try:
        return dispatch(list(arguments))
    except UserError as error:
        rank = os.environ.get("RANK", "")
        complain(f"overnight{f' (rank {rank})' if rank else ''}: {error}")
        return error.code
    except Preempted:
        complain("overnight: stopped before the first step; run the same command again.")
        return SAVED
    except KeyboardInterrupt:
        complain("overnight: interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # `overnight sample ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as error:
        from overnight.files import disk_problem, is_full

        if error.errno in WRONG_PATH or error.errno in BROKEN:
            complain(f"overnight: {UserError(disk_problem(error) + '.')}")
            return WRONG_INPUT if error.errno in WRONG_PATH else FAILURE
        if not is_full(error):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `overnight report ... > file`
        complain(f"overnight: {disk_problem(error)}: the output is incomplete.")
        return FAILURE


def dispatch(arguments: list[str]) -> int:
    if arguments[:1] == ["--"]:  # torchrun -m overnight -- train ...: torchrun hands it on
        arguments = arguments[1:]
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if verb in ("-h", "--help"):
        say(usage())
        return DONE
    if verb == "--version":
        from overnight import __version__

        say(__version__)
        return DONE
    if not verb:
        raise UserError(f"VERB is missing: one of {', '.join(VERBS)} (overnight --help).")
    if verb not in VERBS:
        raise UserError(f"unknown verb '{verb}'.{near(verb, VERBS)} The verbs are {', '.join(VERBS)}.")
    # What a verb needs is imported now, not before.
    return importlib.import_module(f"overnight.verbs.{verb}").run(rest)


def usage() -> str:
    lines = ["usage: overnight VERB ...", ""]
    lines += [f"  {verb:8} {what:7} {does}" for verb, (what, does) in VERBS.items()]
    lines += [
        "",
        "overnight VERB --help lists a verb's options. MODEL is runs/NAME or any path of a run: its newest",
        "checkpoint, or with @STEP another one; hf:gpt2 or hf:PATH, llmc:FILE, nanogpt:FILE: other people's.",
    ]
    return "\n".join(lines)
