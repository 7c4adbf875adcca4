"""`overnight prepare SOURCE`."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from overnight.arguments import parse
from overnight.checks import above_limits, at_least
from overnight.data import SHARD_TOKENS
from overnight.errors import DONE, refuse


@dataclass(frozen=True)
class Prepare:
    """Documents -> tokens -> shards: a data folder that is whole or not there."""

    source: Positional[str]
    """stdlib, shakespeare, text:PATH, stackexchange:PATH, shards:PATH (ready-made tokens), or from the hub
    fineweb-edu[:CONFIG], fineweb[:CONFIG], openwebtext, hf:DATASET[:CONFIG]."""
    out: str = ""
    """Folder to make (default: data/ and the source's name)."""
    tokenizer: str = ""
    """gpt2, char, bpe:N or a tokenizer.json (default: what suits the source)."""
    workers: int = 0
    """Processes that tokenise (default: one a CPU). The result does not depend on it."""
    shard_tokens: int = SHARD_TOKENS
    """Tokens of a shard."""
    keep_downloads: bool = False
    """Keep what came from the hub in downloads/ beside the folder; else a file goes when its tokens are
    safe."""

    def __post_init__(self) -> None:
        refuse([*at_least(self, "", 0, "workers"), *above_limits(self)])


def run(arguments: list[str]) -> int:
    from overnight.data import prepare as preparing
    from overnight.data import readymade
    from overnight.data.documents import default_folder
    from overnight.data.manifest import MANIFEST
    from overnight.machine import cpu_count
    from overnight.terminal import say, size

    wanted = parse(Prepare, "overnight prepare", arguments)
    out = Path(wanted.out) if wanted.out else default_folder(wanted.source)
    tokenizer = wanted.tokenizer or preparing.default_tokenizer(wanted.source)
    existed = (out / MANIFEST).exists()
    if wanted.source.startswith("shards:"):
        data = readymade.prepare(wanted.source, out, tokenizer, wanted.shard_tokens)
    else:
        workers = wanted.workers or cpu_count()
        data = preparing.prepare(
            wanted.source, out, tokenizer, workers, wanted.shard_tokens, wanted.keep_downloads
        )
    made = data.manifest
    say(
        f"{out}{' was ready already' if existed else ''}: {made.documents:,} documents, "
        f"{size(made.bytes)} of text, {made.tokens['train']:,} tokens to train on and "
        f"{made.tokens['val']:,} to validate ({made.tokenizer['kind']} tokenizer, "
        f"{made.tokenizer['vocab_size']:,} ids)."
    )
    return DONE
