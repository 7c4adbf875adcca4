"""Downloads from a hub that misbehaves: every byte arrives, none of those that came is sent again."""

import hashlib
import io
import json
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.data.misbehaving import COMMIT, Misbehaving, Repository, begin_process, serve

NAME = "night/corpus"
FIRST, SECOND = f"{NAME}/data/train-0.parquet", f"{NAME}/data/train-1.parquet"

READ = f"read_all(list_files({NAME!r}), Path('downloads'))"


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


def wait_until(true: Callable[[], bool]) -> None:
    for _ in range(2000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to pass")


def test_the_files_come_whole_in_order_and_go_when_released(
    hub: Misbehaving, run: Run, tmp_path: Path
) -> None:
    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    total = sum(len(content) for content in hub.repositories[NAME].files.values())
    assert done.stdout.split() == [*hashes(hub), str(total)]
    assert sum(hub.sent.values()) == total
    assert not (tmp_path / "downloads").exists()


@pytest.mark.parametrize(
    ("acts", "ranges", "wasted"),
    [
        ([("drop", 20_000), ("drop", 30_000)], ["", "bytes=20000-", "bytes=50000-"], 0),
        ([("truncate", 20_000)], ["", "bytes=20000-"], 0),
        ([("hang", 20_000)], ["", "bytes=20000-"], 0),
        ([("status", 503, {})] * 3, [""] * 4, 0),
        ([("status", 500, {}), ("status", 502, {}), ("status", 504, {})], [""] * 4, 0),
        ([("status", 429, {"Retry-After": "1"})], ["", ""], 0),
        ([("drop", 20_000), ("whole",)], ["", "bytes=20000-"], 20_000),
        ([("drop", 20_000), ("status", 503, {})], ["", "bytes=20000-", "bytes=20000-"], 0),
        ([("corrupt",)], ["", ""], None),
        ([("drop", 20_000), ("corrupt",)], ["", "bytes=20000-", ""], None),
    ],
)  # fmt: skip
def test_what_breaks_is_continued_and_nothing_is_sent_twice_that_came(
    hub: Misbehaving, run: Run, acts: list[tuple[Any, ...]], ranges: list[str], wasted: int | None
) -> None:
    hub.will(FIRST, *acts)
    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[:-1] == hashes(hub)
    assert hub.asked(FIRST) == ranges
    if wasted is not None:
        size = len(hub.repositories[NAME].files["data/train-0.parquet"])
        assert hub.sent[FIRST] == size + wasted


def test_retry_after_is_honoured(hub: Misbehaving, run: Run) -> None:
    """Told to wait longer than there is patience, it gives up at once instead of asking too early."""
    hub.will(FIRST, ("status", 429, {"Retry-After": "3600"}))
    done = run()
    assert done.returncode == 1
    assert "answers 429 Too Many Requests and asks to wait 1 h 00 min" in done.stderr
    assert len(done.stderr.splitlines()) <= 3
    assert hub.asked(FIRST) == [""]
    clock = "\nprint(json.dumps(took := time.monotonic() - began))"
    for headers in ({"Retry-After": "1"}, {"RateLimit": '"resolvers";r=0;t=1'}):
        hub.will(FIRST, ("status", 429, headers))
        done = run(f"began = time.monotonic()\n{READ}{clock}")
        assert float(done.stdout.split()[-1]) >= 1


def test_killed_in_the_middle_it_goes_on_from_the_byte(
    hub: Misbehaving, run: Run, start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    hub.will(FIRST, ("hang", 30_000))
    hub.will(SECOND, ("hang", 40_000))
    process = start(READ, HF_HUB_DOWNLOAD_TIMEOUT="60")
    folder = tmp_path / "downloads" / "data"
    sizes: Callable[[], list[int]] = lambda: sorted(path.stat().st_size for path in folder.glob(".*.partial"))  # noqa: E731
    wait_until(lambda: sizes() == [30_000, 40_000])
    process.kill()
    process.communicate()
    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[:-1] == hashes(hub)
    assert hub.asked(FIRST) == ["", "bytes=30000-"]
    assert hub.asked(SECOND) == ["", "bytes=40000-"]
    total = sum(len(content) for content in hub.repositories[NAME].files.values())
    assert sum(hub.sent.values()) == total
    assert int(done.stdout.split()[-1]) == total - 70_000


def test_ctrl_c_leaves_at_once(hub: Misbehaving, start: Callable[..., subprocess.Popen[str]]) -> None:
    """While two threads wait for a server that says nothing for a minute."""
    hub.will(FIRST, ("hang", 30_000))
    hub.will(SECOND, ("hang", 30_000))
    process = start(READ, HF_HUB_DOWNLOAD_TIMEOUT="60")
    wait_until(lambda: hub.sent[FIRST] == hub.sent[SECOND] == 30_000)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT


def test_several_files_at_once_and_no_more_than_allowed(
    hub: Misbehaving, run: Run, files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.repositories[NAME].files = files
    hub.meeting = threading.Barrier(3, timeout=20)
    for path in list(files)[:3]:
        hub.will(f"{NAME}/{path}", ("meet",))  # nothing comes before three are asked for
    look = f"""
folder = Path('downloads')
with Downloads(list_files({NAME!r}), folder, ahead=2, base=0.01) as downloads:
    for number in range(8):
        downloads.fetch(number)
        last = min(number + 2, 7)
        while not downloads.path(last).exists():
            time.sleep(0.01)
        time.sleep(0.02)  # for what should not come
        print(json.dumps(sorted(path.name for path in folder.rglob('*') if path.is_file())))
        downloads.release(number)
        downloads.release(number)
"""
    done = run(look)
    assert (done.returncode, done.stderr) == (0, "")
    seen = [json.loads(line) for line in done.stdout.splitlines()]
    names = [path.removeprefix("data/") for path in files]
    assert seen == [names[number : number + 3] for number in range(8)]
    assert not (tmp_path / "downloads").exists()


def test_what_is_there_is_not_fetched_again(hub: Misbehaving, run: Run, tmp_path: Path) -> None:
    """Kept files serve without the hub, given the listing; damaged ones do not."""
    write = f"""
listing = list_files({NAME!r})
Path('listing').write_bytes(pickle.dumps(listing))
"""
    kept = """
listing = pickle.loads(Path('listing').read_bytes())
read_all(listing, Path('kept'), keep=True)
"""
    assert run(write + kept).returncode == 0
    assert len(list((tmp_path / "kept" / "data").iterdir())) == 2
    sent = sum(hub.sent.values())
    offline = run(kept, HF_HUB_OFFLINE="1")
    assert (offline.returncode, offline.stdout.split()) == (0, [*hashes(hub), "0"])
    assert sum(hub.sent.values()) == sent
    file = tmp_path / "kept" / "data" / "train-1.parquet"
    file.write_bytes(bytes(len(file.read_bytes())))
    offline = run(kept, HF_HUB_OFFLINE="1")
    assert offline.returncode == 2
    assert "HF_HUB_OFFLINE is set" in offline.stderr
    again = run(kept)
    assert (again.returncode, again.stdout.split()[:-1]) == (0, hashes(hub))
    assert sum(hub.sent.values()) == sent + file.stat().st_size


def test_files_before_the_first_are_never_fetched_and_do_not_stay(
    hub: Misbehaving, run: Run, tmp_path: Path
) -> None:
    left = tmp_path / "downloads" / "data" / "train-0.parquet"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"its tokens are safe")
    done = run(f"read_all(list_files({NAME!r}), Path('downloads'), first=1)")
    assert (done.returncode, done.stdout.split()[:-1]) == (0, hashes(hub)[1:])
    assert hub.asked(FIRST) == []
    assert not (tmp_path / "downloads").exists()


@pytest.mark.parametrize(
    ("acts", "code", "message"),
    [
        (
            [("corrupt",)] * 2,
            1,
            "data/train-0.parquet of hf:night/corpus came with the wrong content, twice.",
        ),
        ([("status", 404, {"X-Error-Code": "EntryNotFound"})], 2, "has no data/train-0.parquet"),
        ([("status", 403, {"X-Error-Code": "GatedRepo"})], 2, "asks for an agreement"),
        ([("status", 401, {})], 2, "does not let you have hf:night/corpus (401): set HF_TOKEN"),
        ([("status", 403, {})], 2, "does not let you have hf:night/corpus (403)"),
        ([("status", 451, {})], 2, "does not give hf:night/corpus/data/train-0.parquet"),
        ([("status", 503, {})] * 99, 1, "it answers 503 Service Unavailable"),
        ([("drop", 9_000), *[("drop", 0)] * 999], 1, "There was no progress"),
        (
            [("drop", 9_000), *[("truncate", 0)] * 999],
            1,
            "it ended after",
        ),
    ],
)
def test_what_cannot_be_had_is_an_error_of_fetch(
    hub: Misbehaving, run: Run, acts: list[tuple[Any, ...]], code: int, message: str
) -> None:
    hub.will(FIRST, *acts)
    done = run(f"read_all(list_files({NAME!r}), Path('downloads'), patience=0.3)")
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) <= 3
    if code == 2:
        assert len(hub.asked(FIRST)) == 1  # no use in asking again
    else:
        assert "The same command" in done.stderr


def test_a_server_that_always_breaks_at_the_same_place_is_no_progress(hub: Misbehaving, run: Run) -> None:
    """Bytes come each time, but never one more."""
    size = len(hub.repositories[NAME].files["data/train-0.parquet"])
    hub.repositories[NAME].ranges = False
    hub.will(FIRST, *[("drop", size - 1)] * 999)
    done = run(f"read_all(list_files({NAME!r}), Path('downloads'), patience=0.3)")
    assert done.returncode == 1
    assert "There was no progress" in done.stderr


def test_an_error_ahead_waits_until_its_file_is_asked_for_and_may_have_passed(
    hub: Misbehaving, run: Run
) -> None:
    """The second file fails while nobody waits for it; by the time it is wanted, the hub is well again."""
    hub.will(SECOND, ("status", 429, {"Retry-After": "3600"}))
    done = run(f"""
with Downloads(list_files({NAME!r}), Path('downloads'), base=0.01) as downloads:
    downloads.fetch(0)
    while downloads._started[1].error is None:
        time.sleep(0.01)
    print(downloads.fetch(1).stat().st_size)
""")
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) == len(hub.repositories[NAME].files["data/train-1.parquet"])


def test_the_token_goes_to_the_hub_and_to_nobody_else(hub: Misbehaving, run: Run) -> None:
    hub.repositories[NAME].gated = True
    assert "asks for an agreement" in run().stderr
    done = run(HF_TOKEN="hf_secret")
    assert (done.returncode, done.stderr) == (0, "")
    assert {token for path, token in hub.tokens if path.startswith("api/")} == {"", "Bearer hf_secret"}
    assert {token for path, token in hub.tokens if path.startswith(NAME)} == {""}


def test_parts_of_two_versions_are_never_put_together(hub: Misbehaving, run: Run, tmp_path: Path) -> None:
    part = tmp_path / "downloads" / "data" / f".train-0.parquet.{COMMIT[:8]}.partial"
    part.parent.mkdir(parents=True)
    part.write_bytes(hub.repositories[NAME].files["data/train-0.parquet"][:5000])
    part.with_name(".train-1.parquet.fedcba98.partial").write_bytes(b"of another commit")
    done = run()
    assert (done.returncode, done.stdout.split()[:-1]) == (0, hashes(hub))
    assert hub.asked(FIRST) == ["bytes=5000-"]
    assert hub.asked(SECOND) == [""]


def test_who_waits_sees_how_far_it_is_and_why_it_stands_still(hub: Misbehaving, run: Run) -> None:
    hub.will(FIRST, ("status", 503, {"Retry-After": "1"}), ("slow", 0.1))
    done = run(f"""
status = Status(plain_every=0)
status._last = 0  # at once, where it would wait two seconds
read_all(list_files({NAME!r}), Path('downloads'), status=status)
""")
    assert done.returncode == 0
    assert (
        "downloading file 1 of 2: it answers 503 Service Unavailable and asks to wait 1 s; again in"
        in done.stderr
    )
    assert "kB/s, " in done.stderr
    assert " left\n" in done.stderr


def test_a_full_disk_is_said(hub: Misbehaving, run: Run, tmp_path: Path) -> None:
    done = run(f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
{READ}
""")
    assert done.returncode == 1
    assert done.stderr.startswith("Failure: downloading data/train-0.parquet: ")
    assert len(done.stderr.splitlines()) <= 3
