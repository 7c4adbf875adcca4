"""A dataset on a local hub, and code that lists or downloads its files in a process of its own."""

import hashlib
import io
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.data.misbehaving import Misbehaving, Repository, serve

NAME = "night/corpus"
FIRST, SECOND = f"{NAME}/data/train-0.parquet", f"{NAME}/data/train-1.parquet"

READ = f"read_all(list_files({NAME!r}), Path('downloads'))"

PROGRAM = """
import json, pickle, signal, sys, time
from dataclasses import asdict
from pathlib import Path
from overnight.data.downloads import Downloads
from overnight.data.hub import list_files
from overnight.errors import UserError
from overnight.terminal import Status

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background begins without

def there(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.exists() else []

def read_all(listing, folder, status=None, first=0, **options):
    "What `prepare` does: each file in turn, and then it goes. Their SHA-256."
    import hashlib
    with Downloads(listing, folder, first=first, base=0.01, **options) as downloads:
        for number in range(first, len(listing.files)):
            path = downloads.fetch(number, status)
            print(hashlib.sha256(path.read_bytes()).hexdigest(), flush=True)
            downloads.release(number)
        print(downloads.done_bytes)

try:
    exec(sys.argv[1])
except UserError as error:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    sys.exit(error.code)
"""


def begin_process(hub: Misbehaving, code: str, folder: Path, **more: str) -> subprocess.Popen[str]:
    """PROGRAM with `code`, in a process of its own: huggingface_hub reads the environment when imported."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("HF_") and "proxy" not in name.lower()
    } | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder / "home"), "HF_HUB_DOWNLOAD_TIMEOUT": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, code],
        cwd=folder,
        env=environment | more,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def parquet(seed: int, rows: int) -> bytes:
    """A real parquet file of random text, which no codec makes small."""
    draw = random.Random(seed)
    table = pa.table({"text": [draw.randbytes(400).hex() for _ in range(rows)]})
    pq.write_table(table, out := io.BytesIO())
    return out.getvalue()


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return {f"data/train-{number}.parquet": parquet(number, 300 + number) for number in range(8)}


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[Misbehaving]:
    with serve({NAME: Repository(dict(list(files.items())[:2]))}) as state:
        yield state


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def start(hub: Misbehaving, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """`start(code)`: the code in a process of its own, with the hub as its hub."""

    def begin(code: str, **more: str) -> subprocess.Popen[str]:
        return begin_process(hub, code, tmp_path, **more)

    return begin


@pytest.fixture
def run(start: Callable[..., subprocess.Popen[str]]) -> Run:
    """`run(code)`: the same, to its end."""

    def call(code: str = READ, **more: str) -> subprocess.CompletedProcess[str]:
        process = start(code, **more)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return call


def hashes(hub: Misbehaving) -> list[str]:
    """What `read_all` should print, but for the count of bytes."""
    return [hashlib.sha256(content).hexdigest() for content in hub.repositories[NAME].files.values()]
