"""The long form of tests/test_fuzz.py: every reader is given thousands of spoiled files.

    python benchmarks/fuzz.py [--cases 10000] [--seed 1] [--jobs 2] [--failures FOLDER] [READER ...]

A reader works in a process of its own, with at most 2 GiB more memory than it had before the first case, and
is killed where a case takes over 10 seconds. That, a process that dies, and whatever is neither a right
answer nor a refusal in three lines is an escape; its file is kept in FOLDER. Exit code 1 if there is one.
"""

import argparse
import json
import os
import re
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # for tests/fuzzing.py

from common import machine, save
from tables import RESULTS

SECONDS = 10.0  # a case
ROOM = 2 << 30  # bytes of memory beyond those of a reader that has read one sound file
PER_PROCESS = 2500  # cases: pyarrow keeps 1 MiB of address space for every damaged .zst
KEPT = 20  # files of each kind of escape


def memory() -> int:
    """Bytes of address space that this process has."""
    found = re.search(r"VmSize:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) << 10


def peak() -> int:
    """The most bytes that this process has had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def child(name: str, cases: int, seed: int, base: Path, failures: Path) -> None:
    """Try so many cases; a line of JSON a case, before it and behind it."""
    import hypothesis
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st
    from tests.fuzzing import Bench, Escape, readers

    import overnight

    bench = Bench(readers()[name], base)
    assert bench.accepts(bench.valid)
    limit = memory() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    before, done = peak(), 0
    kinds: dict[str, int] = {}
    sources = {path.name for path in Path(overnight.__file__).parent.rglob("*.py")}

    def tell(**values: Any) -> None:
        os.write(report, json.dumps(values).encode() + b"\n")

    report = os.dup(1)
    os.dup2(2, 1)

    def one(content: bytes) -> None:
        nonlocal done
        if done >= cases:
            return
        tell(begin=done)
        began, accepted, escape = perf_counter(), False, ""
        try:
            accepted = bench.accepts(content)
        except Escape as error:
            cause = error.__cause__ or error
            at = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(cause.__traceback__)]
            ours = [place for place in at if place.split(":")[0] in sources]
            escape = f"{type(cause).__name__} at {' '.join(dict.fromkeys([*ours[-2:], at[-1]]))}"
            kinds[escape] = kinds.get(escape, 0) + 1
            if kinds[escape] <= KEPT:
                kept = failures / name / f"{len(kinds)}-{kinds[escape]}"
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.with_suffix(bench.path.suffix).write_bytes(content)
                lines = traceback.format_exception(error)
                kept.with_suffix(".txt").write_text("".join(lines)[-5000:], errors="backslashreplace")
        seconds, done = perf_counter() - began, done + 1
        tell(accepted=accepted, escape=escape, ms=1000 * seconds, grown=peak() - before)

    every = settings(
        max_examples=cases, phases=[Phase.generate], database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    strategy = bench.reader.spoil(bench.valid) | st.just(bench.valid)
    turn = 0
    while done < cases:  # what hypothesis has seen it does not try again
        hypothesis.seed(seed * 1000 + turn)(every(given(content=strategy)(one)))()
        turn += 1


def fuzz(name: str, cases: int, seed: int, failures: Path) -> dict[str, Any]:
    """All cases of one reader, in as many processes as it takes."""
    found: dict[str, Any] = dict.fromkeys(("cases", "accepted", "refused", "escaped"), 0)
    found |= {"slowest_ms": 0.0, "grown_mb": 0.0, "escapes": {}}
    began = shown = perf_counter()
    while found["cases"] < cases:
        with tempfile.TemporaryDirectory() as folder:
            base = Path(folder) / "base"
            command = [sys.executable, __file__, "--child", name]
            command += ["--cases", str(min(PER_PROCESS, cases - found["cases"])), "--seed", str(seed)]
            command += ["--folder", str(base), "--failures", str(failures)]
            with open(Path(folder) / "stderr", "w+b") as errors:
                process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
                why, begun = follow(process, found, name, cases, began, shown)
                errors.seek(0)
                said = errors.read().decode("utf-8", "replace")
            if not begun and process.returncode:
                print(f"{name} did not start:\n{said[-2000:]}", file=sys.stderr)
                return found | {"escaped": 1, "escapes": {"the sound file was not read": 1}, "seconds": 0.0}
            if why or process.returncode:
                why = why or f"the process died with {process.returncode}"
                found["cases"] += 1
                found["escaped"] += 1
                found["escapes"][why] = found["escapes"].get(why, 0) + 1
                kept = failures / name / f"killed-{found['escaped']}"
                shutil.copytree(base / "inside", kept, dirs_exist_ok=True)
                (kept / "stderr").write_text(said[:20_000] + said[-20_000:])
        seed += 1
    found["seconds"] = round(perf_counter() - began, 1)
    print(f"{name}: done in {found['seconds']:.0f} s, {found['escaped']} escaped", flush=True)
    return found


def follow(
    process: subprocess.Popen, found: dict[str, Any], name: str, cases: int, began: float, shown: float
) -> tuple[str, bool]:
    """Count what a child reports until it ends or hangs: why it was killed, and whether it had begun."""
    assert process.stdout
    begun, pending = False, b""
    descriptor = process.stdout.fileno()
    while True:
        ready, _, _ = select.select([descriptor], [], [], SECONDS if begun else 120)
        if not ready:
            process.kill()
            process.wait()
            return f"a case took over {SECONDS:.0f} s", begun
        block = os.read(descriptor, 1 << 16)
        if not block:
            process.wait()
            return "", begun
        *lines, pending = (pending + block).split(b"\n")
        for line in map(json.loads, lines):
            begun = True
            if "begin" in line:
                continue
            found["cases"] += 1
            kind = "escaped" if line["escape"] else "accepted" if line["accepted"] else "refused"
            found[kind] += 1
            if line["escape"]:
                found["escapes"][line["escape"]] = found["escapes"].get(line["escape"], 0) + 1
            found["slowest_ms"] = round(max(found["slowest_ms"], line["ms"]), 1)
            found["grown_mb"] = round(max(found["grown_mb"], line["grown"] / 1e6), 1)
        if perf_counter() - shown > 10:
            shown = perf_counter()
            left = (shown - began) / max(1, found["cases"]) * (cases - found["cases"])
            done = f"{found['cases']:,} of {cases:,}, {found['escaped']} escaped"
            print(f"{name}: {done}, {left:.0f} s left", flush=True)


def kept(cases: int, seed: int) -> dict[str, Any]:
    """The figures of readers that are not asked for now, of a run of as many cases."""
    path = RESULTS / "fuzz.json"
    found = json.loads(path.read_text())["figures"] if path.exists() else {}
    return found["readers"] if (found.get("cases"), found.get("seed")) == (cases, seed) else {}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("readers", nargs="*", metavar="READER")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--failures", type=Path, default=Path("fuzz-failures"))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        child(asked.child, asked.cases, asked.seed, asked.folder, asked.failures)
        return 0
    from tests.fuzzing import readers

    known = list(readers())
    if wrong := [name for name in asked.readers if name not in known]:
        parser.error(f"no reader {', '.join(wrong)}; there are {', '.join(known)}")
    names = asked.readers or known
    with ThreadPoolExecutor(asked.jobs) as pool:
        results = list(pool.map(lambda name: fuzz(name, asked.cases, asked.seed, asked.failures), names))
    commit = machine()["git"]
    figures = {name: one | {"git": commit} for name, one in zip(names, results, strict=True)}
    figures = kept(asked.cases, asked.seed) | figures if asked.readers else figures
    save("fuzz", {"cases": asked.cases, "seed": asked.seed, "readers": figures})
    return 1 if any(one["escaped"] for one in results) else 0


if __name__ == "__main__":
    sys.exit(main())
