"""`overnight prepare` from a hub that misbehaves, killed on the way."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.data.misbehaving import COMMIT, Misbehaving, Repository, serve

from overnight.data import corpora, tokens
from overnight.data.manifest import Data
from overnight.data.prepare import prepare
from overnight.evals.reference import corpus

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


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


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


def test_the_first_shard_is_validation_and_nothing_is_left_but_the_data(
    hub: Misbehaving, start: Start, tmp_path: Path, expected: np.ndarray
) -> None:
    code, out, err = run(start, "fineweb-edu", *SHARDS)
    # Where it takes longer than two seconds, and only there, lines of progress.
    complaints = [line for line in err.splitlines() if not line.endswith(" left")]
    assert (code, complaints) == (0, [])
    assert f"data/fineweb-edu: {FILES * ROWS} documents" in out
    data = Data(tmp_path / "data" / "fineweb-edu")
    assert np.array_equal(everything(data), expected)
    made = data.manifest
    assert (made.source, made.split) == ("fineweb-edu:sample-10BT", "the first shard in the dataset's order")
    assert (made.tokens["val"], len(made.shards)) == (20_000, -(-len(expected) // 20_000))
    assert made.details == {"dataset": FINEWEB, "config": "sample-10BT", "revision": COMMIT}
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["fineweb-edu"]
    assert sum(hub.sent.values()) == sum(map(len, CONTENT.values()))


def test_what_is_ready_needs_no_hub(hub: Misbehaving, start: Start, tmp_path: Path) -> None:
    assert run(start, "fineweb-edu", *SHARDS)[0] == 0
    for name in ("fineweb-edu", "fineweb-edu:sample-10BT"):
        code, out, err = run(
            start, name, "--out", "data/fineweb-edu", *SHARDS, HF_ENDPOINT="http://127.0.0.1:9"
        )
        assert (code, err) == (0, "")
        assert "was ready already" in out


def test_a_hub_that_breaks_in_every_way_changes_no_byte(
    hub: Misbehaving, start: Start, tmp_path: Path, expected: np.ndarray
) -> None:
    paths = [f"{FINEWEB}/{path}" for path in CONTENT]
    hub.will(f"api/datasets/{FINEWEB}", ("status", 503, {}), ("status", 429, {"Retry-After": "1"}))
    hub.will(paths[0], ("drop", 5000), ("truncate", 3000), ("status", 429, {"Retry-After": "1"}))
    hub.will(paths[1], ("status", 503, {}), ("drop", 0), ("corrupt",))
    hub.will(paths[2], ("hang", 7000), ("status", 500, {}))
    hub.will(paths[3], ("drop", 100), ("whole",))
    code, _, err = run(start, "fineweb-edu", *SHARDS)
    assert code == 0, err
    assert np.array_equal(everything(Data(tmp_path / "data" / "fineweb-edu")), expected)


def reached(partial: Path) -> int:
    """The number of the file in which the tokens end that are safe."""
    path = partial / "progress.json"
    return json.loads(path.read_text())["place"]["file"] if path.exists() else -1


def test_killed_again_and_again_it_ends_with_the_same_bytes(
    hub: Misbehaving, start: Start, tmp_path: Path
) -> None:
    """Each time a little further on, while a download hangs. Nothing is sent again but what was on its way
    when a kill came (begun anew three times, it would be 2.6 times the files), and the disk never holds all.
    """
    partial = tmp_path / "data" / ".fineweb-edu.partial"
    most = 0
    for number in (2, 5, 8):
        path = f"{FINEWEB}/{list(CONTENT)[number]}"
        hub.will(path, *[("hang", 1000)] * 20)
        process = start("fineweb-edu", *SHARDS)
        while reached(partial) < number - 1:
            assert process.poll() is None, process.communicate()
            most = max(most, len(list(partial.glob("scratch/**/*.parquet"))))
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        hub.will(path)
    assert 2 <= most <= 5 < FILES
    assert run(start, "fineweb-edu", *SHARDS)[0] == 0
    assert sum(hub.sent.values()) <= 1.5 * sum(map(len, CONTENT.values()))
    assert run(start, "fineweb-edu", *SHARDS, "--out", "undisturbed")[0] == 0
    assert contents(tmp_path / "data" / "fineweb-edu") == contents(tmp_path / "undisturbed")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["fineweb-edu"]


def test_an_interruption_keeps_what_is_done_and_the_revision(
    hub: Misbehaving, start: Start, tmp_path: Path
) -> None:
    last = f"{FINEWEB}/{list(CONTENT)[-1]}"
    hub.will(last, ("hang", 10), ("hang", 10), ("hang", 10))
    process = start("fineweb-edu", *SHARDS)
    partial = tmp_path / "data" / ".fineweb-edu.partial"
    while len(list(partial.glob("*.bin"))) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=10)
    assert (process.returncode, "the same command goes on" in err) == (75, True), err
    hub.will(last)
    hub.requests.clear()
    assert run(start, "fineweb-edu", *SHARDS)[0] == 0
    asked = [path for _, path, _ in hub.requests if path.startswith("api/")]
    assert asked
    assert all(COMMIT in path for path in asked)  # not whatever `main` is by now


def test_a_token_that_runs_out_costs_nothing(
    hub: Misbehaving, start: Start, tmp_path: Path, expected: np.ndarray
) -> None:
    """In the middle it is a failure, after which the same command goes on; at the start, a wrong input."""
    hub.will(f"{FINEWEB}/{list(CONTENT)[7]}", *[("status", 403, {})] * 2)
    code, _, err = run(start, "fineweb-edu", *SHARDS)
    assert (code, "set HF_TOKEN" in err, "is kept in" in err) == (1, True, True), err
    assert run(start, "fineweb-edu", *SHARDS)[0] == 0
    assert np.array_equal(everything(Data(tmp_path / "data" / "fineweb-edu")), expected)
    hub.will(f"{FINEWEB}/{next(iter(CONTENT))}", ("status", 403, {}))
    assert run(start, "fineweb-edu", "--out", "new")[0] == 2
    assert not (tmp_path / ".new.partial").exists()


def test_downloads_are_kept_if_wanted(hub: Misbehaving, start: Start, tmp_path: Path) -> None:
    """And used again; then with any tokenizer, even one that reads everything twice."""
    assert run(start, "fineweb-edu", *SHARDS, "--keep-downloads")[0] == 0
    kept = sorted((tmp_path / "data" / "downloads").rglob("*.parquet"))
    assert [path.read_bytes() for path in kept] == list(CONTENT.values())
    sent = sum(hub.sent.values())
    code, _, err = run(start, "fineweb-edu", *SHARDS, "--out", "data/again", "--keep-downloads")
    assert (code, sum(hub.sent.values())) == (0, sent), err


def test_other_datasets_are_split_by_their_documents(hub: Misbehaving, start: Start, tmp_path: Path) -> None:
    """As a folder of the same files is, byte for byte but for its name; with a tokenizer learnt from them."""
    code, _, err = run(start, "hf:night/corpus", "--tokenizer", "bpe:300", *SHARDS)
    assert code == 0, err
    (tmp_path / "files").mkdir()
    for path, content in CONTENT.items():
        (tmp_path / "files" / Path(path).name).write_bytes(content)
    local = prepare(f"text:{tmp_path / 'files'}", tmp_path / "local", "bpe:300", 1, 20_000)
    made = Data(tmp_path / "data" / "corpus")
    assert made.fingerprint == local.fingerprint
    assert made.manifest.split == "documents whose SHA-256 is 0 modulo 20"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["fineweb-edu", "--tokenizer", "bpe:300"], "is split by counting tokens"),
        (["fineweb-edu", "--tokenizer", "char"], "reads all of fineweb-edu:sample-10BT before"),
        (["fineweb-edu:sample-1BT"], "no files"),
        (["fineweb-edu:sampel-10BT"], "has no config sampel-10BT. Did you mean sample-10BT?"),
        (["hf:night/curpos"], "there is no repository night/curpos"),
        (["hf:night/corpus@v9"], "has no revision v9"),
        (["hf:night/corpus:de"], "has no configs: leave out de"),
        (["hf:"], "names no dataset: hf:USER/NAME"),
        (["openwebtext"], "there is no repository Skylion007/openwebtext"),
    ],
)
def test_what_cannot_be_had_is_said_and_leaves_nothing(
    arguments: list[str], says: str, start: Start, tmp_path: Path
) -> None:
    code, out, err = run(start, *arguments)
    assert (code, out) == (2, ""), err
    assert says in err
    assert len(err.splitlines()) <= 3
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("source", "name", "found"),
    [
        ("fineweb-edu", "fineweb-edu:sample-10BT", (FINEWEB, "sample-10BT", None)),
        ("fineweb@v1.4", "fineweb:sample-10BT@v1.4", ("HuggingFaceFW/fineweb", "sample-10BT", "v1.4")),
        (
            "fineweb:CC-MAIN-2024-10",
            "fineweb:CC-MAIN-2024-10",
            ("HuggingFaceFW/fineweb", "CC-MAIN-2024-10", None),
        ),
        ("hf:a/b:en@main", "hf:a/b:en@main", ("a/b", "en", "main")),
        ("openwebtext", "openwebtext", ("Skylion007/openwebtext", None, None)),
    ],
)
def test_the_grammar_of_names(source: str, name: str, found: tuple) -> None:
    assert corpora.full_name(source) == name
    assert corpora.parts(name) == found


def test_the_published_curves_know_the_corpus_by_its_name(
    hub: Misbehaving, start: Start, tmp_path: Path
) -> None:
    """But only with 100 M tokens of validation, which this one has not."""
    assert run(start, "fineweb-edu", *SHARDS)[0] == 0
    assert corpus(Data(tmp_path / "data" / "fineweb-edu").manifest) is None


TWO_TASKS = """
import sys
from overnight.data.cluster import Finish, Tokenise
for rank in (0, 1):
    Tokenise("parts", "fineweb-edu").run(None, rank, 2)
Finish("parts", "together", shard_tokens=20_000).run()
"""


def test_two_machines_share_the_files(hub: Misbehaving, start: Start, tmp_path: Path) -> None:
    """Each downloads its own."""
    program = start("fineweb-edu", *SHARDS, "--out", "alone")
    together = begin_process([sys.executable, "-c", TWO_TASKS], hub, tmp_path)
    assert program.wait(timeout=60) == 0
    _, err = together.communicate(timeout=60)
    assert together.returncode == 0, err
    assert contents(tmp_path / "together") == contents(tmp_path / "alone")
    assert sum(hub.sent.values()) == 2 * sum(map(len, CONTENT.values()))
    assert not list((tmp_path / "parts").glob("scratch*"))
