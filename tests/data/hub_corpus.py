"""A dataset of nine parquet files on a local hub, and `overnight prepare` of it in a process of its own."""

import io
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.data.misbehaving import Misbehaving, Repository, serve

from overnight.data import tokens
from overnight.data.manifest import Data

FINEWEB = "HuggingFaceFW/fineweb-edu"
FILES, ROWS = 9, 60

# Progress is written after every batch, and batches are small, so that there is much to go on from.
SLOWLY = """
import sys
from overnight.data import prepare
prepare.COMMIT_EVERY, prepare.BATCH = 0, 3000
from overnight.cli import main
main()
"""


def texts(number: int) -> list[str]:
    """The documents of a file: words that compress badly."""
    draw = random.Random(number)
    return [f"{number}.{row} " + " ".join(draw.randbytes(3).hex() for _ in range(60)) for row in range(ROWS)]


def parquet(number: int) -> bytes:
    pq.write_table(
        pa.table({"text": texts(number), "id": list(range(ROWS))}), out := io.BytesIO(), row_group_size=20
    )
    return out.getvalue()


CONTENT = {f"sample/10BT/{number:03d}_00000.parquet": parquet(number) for number in range(FILES)}


@pytest.fixture
def hub() -> Iterator[Misbehaving]:
    others = {"sample/100BT/000_00000.parquet": b"not to be read", "README.md": b"a card"}
    repositories = {
        FINEWEB: Repository(CONTENT | others),
        "night/corpus": Repository({path.removeprefix("sample/10BT/"): c for path, c in CONTENT.items()}),
    }
    with serve(repositories) as state:
        yield state


def begin_process(command: list[str], hub: Misbehaving, home: Path, **more: str) -> subprocess.Popen[str]:
    """huggingface_hub reads the environment when it is imported."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    hubs = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home / "home"), "HF_HUB_DOWNLOAD_TIMEOUT": "2"}
    environment = kept | hubs | {"NO_PROXY": "*"} | more
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=home, env=environment, text=True, stdout=pipe, stderr=pipe)


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(hub: Misbehaving, tmp_path: Path) -> Start:
    """`start("fineweb-edu", ...)`: prepare it, in a process of its own."""

    def begin(*arguments: str, **more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", SLOWLY, "prepare", *arguments, "--workers", "1"]
        return begin_process(command, hub, tmp_path, **more)

    return begin


def run(start: Start, *arguments: str, **more: str) -> tuple[int, str, str]:
    process = start(*arguments, **more)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def everything(data: Data) -> list[int]:
    """The tokens in the dataset's order: validation is the first shard."""
    return [
        *data.split("val").read(0, len(data.split("val"))),
        *data.split("train").read(0, len(data.split("train"))),
    ]


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    """Every document after an <|endoftext|>, in the order of the files and rows."""
    tokenizer = tokens.gpt2()
    parts = [[tokenizer.eot, *tokenizer.encode(text)] for number in range(FILES) for text in texts(number)]
    return np.concatenate(parts)


SHARDS = ("--shard-tokens", "20000")
