"""The `overnight` command: parses, calls, exits. What a verb needs is imported when it runs."""

import json
import math
import os
import sys
from collections.abc import Callable, Collection, Sequence
from io import TextIOWrapper
from pathlib import Path

from overnight.errors import DONE, INTERRUPTED, UserError, near

VERBS = {
    "prepare": ("SOURCE", "documents -> tokens -> shards in data/NAME/"),
    "train": ("PRESET", "a run in runs/NAME/; the same command again goes on where it was"),
    "eval": ("MODEL", "validation loss and bits per byte"),
    "sample": ("MODEL", "text from a prompt"),
    "doctor": ("", "what this machine can do, and what would go wrong"),
}


def main() -> None:
    """Entry point of the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # text that the terminal's encoding lacks is shown, not fatal
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Do what the arguments say; the exit code (errors.py)."""
    try:
        return dispatch(list(arguments))
    except UserError as error:
        rank = os.environ.get("RANK", "")
        print(f"overnight{f' (rank {rank})' if rank else ''}: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("overnight: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `overnight sample ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE


def dispatch(arguments: list[str]) -> int:
    if arguments[:1] == ["--"]:  # torchrun -m overnight -- train ...: torchrun hands it on
        arguments = arguments[1:]
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if verb in ("-h", "--help"):
        print(usage())
        return DONE
    if verb == "--version":
        from overnight import __version__

        print(__version__)
        return DONE
    if not verb:
        raise UserError(f"VERB is missing: one of {', '.join(VERBS)} (overnight --help).")
    if verb not in VERBS:
        raise UserError(f"unknown verb '{verb}'.{near(verb, VERBS)} The verbs are {', '.join(VERBS)}.")
    does: dict[str, Callable[[list[str]], int]] = {
        "prepare": prepare,
        "train": train,
        "eval": evaluate,
        "sample": sample,
        "doctor": doctor,
    }
    return does[verb](rest)


def usage() -> str:
    lines = ["usage: overnight VERB ...", ""]
    lines += [f"  {verb:8} {what:7} {does}" for verb, (what, does) in VERBS.items()]
    lines += [
        "",
        "overnight VERB --help lists a verb's options. MODEL is runs/NAME or any path of a run: its newest",
    ]
    lines += ["checkpoint, or with @STEP another one."]
    return "\n".join(lines)


def prepare(arguments: list[str]) -> int:
    from overnight import options
    from overnight.arguments import parse
    from overnight.data import prepare as preparing
    from overnight.machine import cpu_count
    from overnight.terminal import size

    wanted = parse(options.Prepare, "overnight prepare", arguments)
    out = Path(wanted.out or f"data/{Path(wanted.source.partition(':')[2] or wanted.source).resolve().stem}")
    tokenizer = wanted.tokenizer or preparing.default_tokenizer(wanted.source)
    existed = out.exists()
    data = preparing.prepare(
        wanted.source, out, tokenizer, wanted.workers or cpu_count(), wanted.shard_tokens
    )
    made = data.manifest
    print(
        f"{out}{' was ready already' if existed else ''}: {made.documents:,} documents, "
        f"{size(made.bytes)} of text, {made.tokens['train']:,} tokens to train on and "
        f"{made.tokens['val']:,} to validate ({made.tokenizer['kind']} tokenizer, "
        f"{made.tokenizer['vocab_size']:,} ids)."
    )
    return DONE


def train(arguments: list[str]) -> int:
    from overnight.arguments import parse
    from overnight.config import Config
    from overnight.presets import PRESETS

    preset, rest = find_preset(arguments, PRESETS)
    if preset is None:
        described = {name: (function.__doc__ or "").split("\n")[0] for name, function in PRESETS.items()}
        print("usage: overnight train PRESET [--option value ...]\n")
        print("\n".join(f"  {name:22} {line}" for name, line in described.items()))
        print("\novernight train PRESET --help lists the options with the preset's values.")
        return DONE
    wanted = parse(Config, f"overnight train {preset}", rest, default=PRESETS[preset]())

    from overnight import launch, start, world
    from overnight.train import train as train_run

    if launch.is_rank():
        with world.connect(wanted.device) as here:
            return launch.leave_quietly(train_run(start.decide(wanted, preset, here), here))
    if wanted.processes == 1:
        with world.connect(wanted.device) as here:
            return train_run(start.decide(wanted, preset, here), here)
    imagined = world.imagine(wanted.device, wanted.processes)
    decided = start.decide(wanted, preset, imagined)
    if decided.complete:
        return train_run(decided, imagined)
    return launch.torchrun(decided.run, wanted.processes, ["train", *arguments])


def find_preset(arguments: list[str], presets: Collection[str]) -> tuple[str | None, list[str]]:
    """The preset's name and the other arguments; None if only help is asked for."""
    from overnight.arguments import flags
    from overnight.config import Config

    alone = flags(Config)  # the options that no value follows
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
        raise UserError(f"which preset? overnight train PRESET --option ..., one of {', '.join(presets)}.")
    hint = near(arguments[0], presets)
    raise UserError(f"unknown preset '{arguments[0]}'.{hint} The presets are {', '.join(presets)}.")


def evaluate(arguments: list[str]) -> int:
    from overnight import options
    from overnight.arguments import parse

    wanted = parse(options.Eval, "overnight eval", arguments)

    from overnight import resolve, world
    from overnight.data.manifest import Data
    from overnight.evals.loss import validation
    from overnight.evals.yardstick import xz_bits_per_byte
    from overnight.terminal import Status

    with world.connect(wanted.device) as here:
        loaded = resolve.load(wanted.model, here.device)
        autocast = world.use_precision(resolve.precision(wanted.precision, loaded, here.device), here.device)
        trained = loaded.config.model.block_size
        if wanted.context > trained:
            raise UserError(
                f"--context {wanted.context} is longer than the model's {trained}: give at most that."
            )
        data = Data(Path(wanted.data or loaded.config.data))
        if data.tokenizer.sha256 != loaded.tokenizer.sha256:
            raise UserError(
                f"{data.folder} was made with another tokenizer than {wanted.model}'s.",
                f"Prepare it again with --tokenizer {loaded.run / resolve.TOKENIZER}",
            )
        status = Status()

        def progress(done: int, total: int) -> None:
            status.update(lambda: f"validating, window {done:,} of {total:,}")

        found = dict(
            validation(
                loaded.model,
                data.split("val"),
                data.tokenizer.byte_lengths,
                wanted.context or trained,
                wanted.val_tokens or None,
                here,
                autocast,
                progress,
            )
        )
        status.clear()
    if not here.is_main:
        return DONE
    if wanted.json:
        numbers = {name: value if math.isfinite(value) else None for name, value in found.items()}
        print(json.dumps({wanted.tasks: numbers}))
        return DONE
    tokens = int(found["tokens"])
    rows = [
        ("validation loss", f"{found['loss']:.4f}", f"nats per token, {tokens:,} tokens"),
        ("bits per byte", f"{found['bits_per_byte']:.4f}", "fewer is better"),
    ]
    if (xz := xz_bits_per_byte(data, tokens)) is not None:
        rows.append(("xz -9e, bits per byte", f"{xz:.4f}", "the same text, compressed by itself"))
    print(f"{wanted.model} at step {loaded.step:,} on {data.folder}")
    print("\n".join(f"  {name:22} {value:>8}  {note}" for name, value, note in rows))
    return DONE


def sample(arguments: list[str]) -> int:
    from overnight import options
    from overnight.arguments import parse

    wanted = parse(options.Sample, "overnight sample", arguments)

    from overnight import resolve, world
    from overnight.generate import Sampling, stream

    with world.connect(wanted.device) as here:
        loaded = resolve.load(wanted.model, here.device)
        autocast = world.use_precision(resolve.precision(wanted.precision, loaded, here.device), here.device)
        sampling = Sampling(wanted.temperature, wanted.top_k, wanted.top_p)
        with autocast():
            written = stream(
                loaded.model,
                loaded.tokenizer,
                wanted.prompt,
                wanted.samples,
                wanted.length,
                sampling,
                wanted.seed,
            )
            for text in written:
                sys.stdout.write(text)
                sys.stdout.flush()
    return DONE


def doctor(arguments: list[str]) -> int:
    from overnight import options
    from overnight.arguments import parse

    wanted = parse(options.Doctor, "overnight doctor", arguments)

    from overnight.doctor import examine

    return examine(wanted.device)
