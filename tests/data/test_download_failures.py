"""A download that is interrupted resumes from its last byte, or fails with an error that names the cause."""

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.data.downloading import FIRST, NAME, READ, SECOND, Run, files, hashes, hub, run, start
from tests.data.misbehaving import Misbehaving

__all__ = ["files", "hub", "run", "start"]


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


def wait_until(true: Callable[[], bool]) -> None:
    for _ in range(2000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to pass")


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
