"""The list of a dataset's files, asked of a local hub by a process of its own."""

import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.data.downloading import begin_process
from tests.data.misbehaving import COMMIT, Misbehaving, Repository, serve

from overnight.data.hub import Listing, Remote
from overnight.errors import Failure

NAME = "night/corpus"
GONE = "http://127.0.0.1:9"  # nobody listens on the discard port
FINEWEB = [
    "README.md",
    *(f"sample/10BT/{number:03}_00000.parquet" for number in range(14)),
    "sample/100BT/000_00000.parquet",
    *(f"data/CC-MAIN-2024-10/train-{number:05}.parquet" for number in range(3)),
    "data/CC-MAIN-2024-18/train-00000.parquet",
]


@pytest.fixture
def hub() -> Iterator[Misbehaving]:
    with serve({NAME: Repository({"train-0.parquet": b"PAR1\xff", "test-0.parquet": b"PAR1"})}) as state:
        yield state


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def listed(hub: Misbehaving, tmp_path: Path) -> Run:
    """`listed(dataset, config)`: a process that lists its files as JSON."""

    def call(*what: Any, patience: float = 0.5, **more: str) -> subprocess.CompletedProcess[str]:
        code = f"print(json.dumps(asdict(list_files(*{what!r}, patience={patience}, base=0.01))))"
        process = begin_process(hub, code, tmp_path, **more)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return call


def paths(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert (done.returncode, done.stderr) == (0, "")
    return [file["path"] for file in json.loads(done.stdout)["files"]]


def test_a_listing_is_pinned_and_says_sizes_and_hashes(hub: Misbehaving, listed: Run) -> None:
    done = listed(NAME)
    assert paths(done) == ["train-0.parquet"]
    found = json.loads(done.stdout)
    listing = Listing(**(found | {"files": tuple(Remote(**file) for file in found["files"])}))
    digest = hashlib.sha256(b"PAR1\xff").hexdigest()
    assert listing == Listing(NAME, None, COMMIT, (Remote("train-0.parquet", 5, digest),))


@pytest.mark.parametrize("trees", [True, False])
def test_the_finewebs_parts_in_their_order(hub: Misbehaving, listed: Run, trees: bool) -> None:
    """Over several pages of the tree, and from a mirror that has no trees."""
    files = {path: path.encode() for path in reversed(FINEWEB)}
    hub.repositories["HuggingFaceFW/fineweb-edu"] = Repository(files, page=5, trees=trees)
    assert paths(listed("fineweb-edu")) == FINEWEB[1:15]
    assert paths(listed("fineweb-edu", "sample-100BT")) == [FINEWEB[15]]
    assert paths(listed("HuggingFaceFW/fineweb-edu", "CC-MAIN-2024-10")) == FINEWEB[16:19]
    assert paths(listed("fineweb-edu", "default")) == FINEWEB[16:20]
    if trees:  # only the folder that is wanted was listed
        trees_asked = [path for _, path, _ in hub.requests if "/tree/" in path]
        assert trees_asked[0].endswith(f"/tree/{COMMIT}/sample/10BT")


def test_openwebtext_and_cards(hub: Misbehaving, listed: Run) -> None:
    names = [f"plain_text/train-{number:05}-of-00080.parquet" for number in range(80)]
    hub.repositories["Skylion007/openwebtext"] = Repository(
        {name: name.encode() for name in names},
        {"configs": [{"config_name": "plain_text", "data_files": [
            {"split": "train", "path": "plain_text/train-*"}]}]},
    )  # fmt: skip
    assert paths(listed("openwebtext")) == names
    hub.repositories["Skylion007/openwebtext"].card = {}
    assert paths(listed("openwebtext")) == names


def test_what_cannot_be_listed_is_said(hub: Misbehaving, listed: Run) -> None:
    hub.repositories["night/tables"] = Repository({"a.csv": b"1", "b.csv": b"2", "README.md": b""})
    hub.repositories["night/gated"] = Repository({"a.parquet": b"1"}, gated=True)
    hub.repositories["night/several"] = Repository(
        {"a/x.txt": b"1"}, {"configs": [{"config_name": "a"}, {"config_name": "b"}]}
    )
    cases = [
        (listed("night/nothing"), "there is no repository night/nothing on the hub"),
        (listed(NAME, None, "v9"), "hf:night/corpus has no revision v9"),
        (listed("night/gated"), "asks for an agreement"),
        (listed("a/b/c"), "is no name on the hub"),
        (listed("night/tables"), "has no files that Overnight reads, but 2 .csv, 1 .md."),
        (listed("night/several"), "several configs: say which (a, b)"),
        (listed(NAME, HF_HUB_OFFLINE="1"), "HF_HUB_OFFLINE is set"),
    ]
    for done, message in cases:
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr
        assert len(done.stderr.splitlines()) <= 3


def test_a_hub_that_does_not_answer_is_asked_a_few_times(hub: Misbehaving, listed: Run) -> None:
    api = f"api/datasets/{NAME}"
    hub.will(api, ("status", 503, {}), ("status", 429, {}))
    hub.will(f"{api}/tree/{COMMIT}", ("status", 500, {}))
    assert paths(listed(NAME, patience=30)) == ["train-0.parquet"]
    hub.will(api, *[("status", 503, {})] * 99)
    down = listed(NAME)
    gone = listed(NAME, HF_ENDPOINT=GONE)
    hub.will(api, ("html",))
    page = listed(NAME)
    for done, message in (
        (down, "answers 503 Service Unavailable"),
        (gone, "Connection refused"),
        (page, "is not the hub's: does HF_ENDPOINT name a hub?"),
    ):
        assert (done.returncode, done.stdout) == (1, "")
        assert message in done.stderr
        assert len(done.stderr.splitlines()) <= 3


@pytest.mark.parametrize("path", ["../x.parquet", "/x.parquet", "a/../../x", "C:\\x", "..\\x"])
def test_no_file_is_written_outside_its_folder(path: str) -> None:
    with pytest.raises(Failure, match="outside its folder"):
        Remote(path, 1)
