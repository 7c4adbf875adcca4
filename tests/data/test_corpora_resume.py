"""`overnight prepare` of a dataset on a hub writes the same data after failed downloads and kills."""

import json
import signal
import time
from pathlib import Path

import numpy as np
from tests.data.hub_corpus import (
    CONTENT,
    FILES,
    FINEWEB,
    SHARDS,
    Start,
    everything,
    expected,
    hub,
    run,
    start,
)
from tests.data.misbehaving import COMMIT, Misbehaving
from tests.data.small_corpus import contents

from overnight.data.manifest import Data

__all__ = ["expected", "hub", "start"]


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
