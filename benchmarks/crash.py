"""Kills a run, or `prepare`, a hundred times in a row and starts it again: the end must be that of one never
stopped, bit for bit.

python benchmarks/crash.py [--kills 100] [--seed 1] [single] [ranks] [prepare]     some 40 minutes for all
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # for tests.violence

from tests.violence import command, events, kill, killed_at, measured, sabotaged  # noqa: E402

from common import save  # noqa: E402
from overnight.saved import OPTIMIZER, WEIGHTS, folder, list_steps  # noqa: E402
from overnight.terminal import duration  # noqa: E402

SMALL = "--device cpu --model.n-layer 2 --model.n-head 2 --model.n-embd 32 --model.block-size 32".split()
SMALL += "--batch-tokens 256 --optim.warmup-steps 2 --optim.schedule constant --model.dropout 0.1".split()
SMALL += "--sample.length 10 --eval-every 20 --sample-every 30 --save-every 7 --val-tokens 4000".split()
# What it kills itself at, and for the how manieth time at most: later ones would not come in a short life.
MOMENTS = {"record": 12, "tensors": 12, "state": 6, "published": 12, "prune": 6, "evaluation": 3, "sample": 2}
MOMENTS |= {"config": 3, "rewind": 1, "rewound": 1, "update": 12}
PATIENCE = 20  # seconds for a moment to come; then the death comes from outside
WHOM = {"single": ["launcher"], "ranks": ["launcher", "torchrun", "rank", "first rank", "everything"]}
ENOUGH = 1_000_000  # steps: it never gets there


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", nargs="*", default=["single", "ranks", "prepare"])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    figures = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        for what in options.what:
            began, draw = time.monotonic(), random.Random(options.seed)
            place = Path(name) / what
            place.mkdir()
            kill_it = prepare_killed if what == "prepare" else training_killed
            figures[what] = kill_it(place, what, options.kills, draw)
            figures[what]["minutes"] = round((time.monotonic() - began) / 60, 1)
    save("crash", figures)


def training_killed(place: Path, what: str, kills: int, draw: random.Random) -> dict[str, Any]:
    """Of two lives one shall end from inside, at a chosen moment, one from outside, at a random one."""
    data, run, whole = place / "data", place / "run", place / "whole"
    subprocess.run(
        command("prepare", f"text:{text(place)}", "--tokenizer", "char", "--out", data), check=True
    )
    processes = ["--processes", 2 if what == "ranks" else 1]
    train = ["train", "shakespeare-cpu", "--data", data, *SMALL, *processes]
    deaths: dict[str, int] = {}
    began = time.monotonic()
    while (done := sum(deaths.values())) < kills:
        rank = draw.randrange(2) if what == "ranks" else 0
        at = draw.choice(list(MOMENTS))
        moment = f"{at}:{draw.randint(1, MOMENTS[at])}" if draw.random() < 0.5 else ""
        environment = killed_at(moment, rank) if moment else None
        begun = start([*train, "--run", run, "--steps", ENOUGH], environment)
        try:
            begun.wait(draw.uniform(0.5, 9) if not moment else PATIENCE)
            how = at
        except subprocess.TimeoutExpired:
            how = draw.choice(WHOM[what])
            kill(begun, how)
        code = begun.wait(120)
        if code not in (-signal.SIGKILL, 1, 75):
            raise SystemExit(f"{what}: exit code {code} after a kill ({how})")
        deaths[how] = deaths.get(how, 0) + 1
        left = duration((time.monotonic() - began) / (done + 1) * (kills - done - 1))
        newest = list_steps(run)[-1:] if run.is_dir() else []
        print(f"{what}: kill {done + 1} of {kills} ({how}), at step {newest}, {left} left", flush=True)
    last = start([*train, "--run", run, "--steps", ENOUGH, "--max-minutes", 0.2], None)
    assert last.wait(120) == 75
    steps = list_steps(run)[-1]
    print(f"{what}: now the same {steps:,} steps without a stop", flush=True)
    assert start([*train, "--run", whole, "--steps", steps, "--keep", 1], None).wait() == 0
    resumed = [event["step"] for event in events(run, "resume")]
    assert len({step for step in resumed if step}) >= min(3, kills // 4), "it did not resume"
    for name in (WEIGHTS, OPTIMIZER):
        assert (folder(run, steps) / name).read_bytes() == (folder(whole, steps) / name).read_bytes(), name
    # The last step of a whole run evaluates more; all before it must be there, once, and the same.
    ours, theirs = ([r for r in measured(one) if r["step"] < steps] for one in (run, whole))
    assert ours == theirs
    trained = [record["step"] for record in measured(run) if record["kind"] == "train"]
    assert trained == list(range(1, steps + 1))
    return {
        "kills": kills, "survived": kills, "by": deaths, "steps": steps,
        "resumes at different steps": len({step for step in resumed if step}),
    }  # fmt: skip


def prepare_killed(place: Path, what: str, kills: int, draw: random.Random) -> dict[str, Any]:
    """`prepare` of some 20 MB with two workers; its progress is synced every 0.3 seconds instead of 10."""
    whole, cut, deaths, restarts = place / "whole", place / "cut", 0, 0
    source = text(place, lines=300_000)
    make = ["prepare", f"text:{source}", "--tokenizer", "gpt2", "--workers", 2]
    make += ["--shard-tokens", 500_000, "--out"]
    assert start([*make, whole], None).wait() == 0
    environment = sabotaged(SET="overnight.data.prepare:COMMIT_EVERY=0.3")
    while deaths < kills:
        begun = start([*make, cut], environment)
        try:
            code = begun.wait(draw.uniform(0.1, 4))
        except subprocess.TimeoutExpired:
            kill(begun, draw.choice(["launcher", "everything"]))
            code = begun.wait(60)
            deaths += 1
            print(f"prepare: kill {deaths} of {kills}", flush=True)
        if code == 0:  # done before its death came: again from nothing
            same(whole, cut)
            subprocess.run(["rm", "-r", cut], check=True)
            restarts += 1
        elif code != -signal.SIGKILL:
            raise SystemExit(f"prepare: exit code {code} after a kill")
    assert start([*make, cut], environment).wait(300) == 0
    same(whole, cut)
    return {"kills": kills, "survived": kills, "finished and compared": restarts + 1}


def same(whole: Path, cut: Path) -> None:
    """The same files with the same bytes."""
    names = sorted(path.name for path in whole.iterdir())
    assert names == sorted(path.name for path in cut.iterdir())
    for name in names:
        assert (whole / name).read_bytes() == (cut / name).read_bytes(), name


def start(arguments: list[Any], environment: dict[str, str] | None) -> subprocess.Popen:
    log = subprocess.DEVNULL
    return subprocess.Popen(command(*arguments), env=environment, stdout=log, stderr=log)


def text(place: Path, lines: int = 20_000) -> Path:
    """Text of some documents, the same each time."""
    draw = random.Random(7)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(1, 9))) for _ in range(2000)]
    path = place / "text.txt"
    path.write_text("\n".join(" ".join(draw.choices(words, k=10)) for _ in range(lines)))
    return path


if __name__ == "__main__":
    main()
