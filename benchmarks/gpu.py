"""Everything that wants a GPU, on one card and without a network: a training step beside other people's,
validation, HellaSwag's shapes, sampling, a profile of a step, the ladder.

    python benchmarks/gpu.py [--nanogpt DIR] [--minutes 8] [--only PART ...]    (gpu.sh: the tests first)

Needs torch 2.11 or newer and numpy; transformers joins in where it is installed. Weights and tokens are made
up: times do not depend on them. What would not end in time is left out, and said to be; `--only` measures it
another time, beside what the same card has in benchmarks/results/gpu.json. `--small` runs all of it at toy
sizes, on a CPU too: whether it works, not how fast.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import peers
from common import in_turn, machine, progress, save
from gpu_page import AIMS
from overnight import ladder, plan, profiling, stopwatch, world
from overnight.config import ModelConfig
from overnight.decode import Sampling
from overnight.evals.continuations import Item, score
from overnight.evals.loss import validation
from overnight.generate import generate
from overnight.models.gpt2 import GPT
from tables import load, there

GPT2 = ModelConfig(vocab_size=50_304)
IDS = 50_257
HALF_MILLION = 524_288  # tokens a step
INTERVAL = 250  # steps between validations
A_RUNG = 70.0  # seconds that one may take, with its compilation
LECTURE = "the lecture's settings in this engine"


class Bench:
    def __init__(self, options: argparse.Namespace):
        self.small, self.device = options.small, world.choose_device(options.device)
        self.nanogpt, self.until = options.nanogpt, time.monotonic() + 60 * options.minutes
        self.half = self.device.type == "cuda" and world.choose_precision("auto", self.device) == "bf16"
        self.model = replace(GPT2, n_layer=2, n_head=2, n_embd=64, block_size=64) if self.small else GPT2
        self.autocast = world.use_precision("bf16" if self.half else "fp32", self.device)
        self.card = torch.cuda.get_device_name() if self.device.type == "cuda" else "CPU"
        self.to_keep = self.device.type == "cuda" and not self.small
        self.machine = machine()
        self.figures: dict[str, Any] = self.before() if self.to_keep and options.only else {}
        self.rows: list[tuple[str, str, str]] = []  # what, figure, what it shall be

    def before(self) -> dict[str, Any]:
        """The figures of the other parts, which have to be this card's with this torch."""
        if not there("gpu"):
            return {}
        result = load("gpu")
        if any(result["machine"][name] != self.machine[name] for name in ("gpus", "torch")):
            raise SystemExit("benchmarks/results/gpu.json is another card's, or torch's: leave out --only.")
        return result["figures"]

    def keep(self, name: str, **values: Any) -> None:
        """A figure for the results, with the time and the commit of its own."""
        self.figures[name] = values | {"measured": [self.machine["time"], self.machine["git"]]}

    def left(self) -> float:
        """Seconds until the end."""
        return self.until - time.monotonic()

    def row(self, what: str, figure: str, goal: str = "") -> None:
        self.rows.append((what, figure, goal))
        progress(f"{what}: {figure}")

    def part(self, name: str, work: Callable[[], None], needs: float) -> None:
        """A part of the work, if there are so many seconds for it, and its figures are saved; its failure is
        a row, not the end."""
        if not self.small and self.left() < needs:
            self.row(name, "left out: no time")
            return
        try:
            work()
            if self.to_keep:
                save("gpu", self.figures, quiet=True)
        except Exception as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            self.row(name, f"failed: {reason[:100]}")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    # A training step

    def steps(
        self, name: str, step: Callable[[peers.Setting], peers.Step], rows: int, compiled: bool
    ) -> float:
        """Tokens/s of a step of half a million tokens, in a process of its own."""
        T = self.model.block_size
        count = 1 if self.small else HALF_MILLION // (rows * T)
        setting = peers.Setting(self.model, rows, self.device.type, self.half, compiled, count)
        patience = max(60.0, self.left())
        made = {name: partial(step, setting)}
        seconds = in_turn(made, 1, 2 if self.small else 8, warm_up=2, patience=patience)[name]
        rate = rows * T * count / statistics.median(seconds)
        peak = world.peak_flops(self.device, "bf16" if self.half else "fp32")
        mfu = rate * plan.flops_per_token(self.model) / peak if peak else None
        self.keep(
            name, tokens_per_second=round(rate), mfu=mfu, micro_batch=rows,
            step_ms=[round(1000 * one, 2) for one in seconds],
        )  # fmt: skip
        return rate

    def training(self) -> None:
        rows, compiled = 2 if self.small else 64, not self.small
        ours = self.steps("overnight", peers.overnight, rows, compiled)
        mfu = self.figures["overnight"]["mfu"]
        self.row("training, tokens/s", f"{ours:,.0f}", AIMS["overnight"])
        self.row("  MFU (855 MFLOP a token)", f"{mfu:.1%}" if mfu else "peak not known")

    def modern(self) -> None:
        rate = self.steps("modern", peers.modern, 2 if self.small else 64, not self.small)
        self.row("the modern recipe, tokens/s", f"{rate:,.0f}", AIMS["modern"])

    def others(self) -> None:
        if "overnight" not in self.figures:
            raise RuntimeError("there is nothing to compare with before `training`")
        compiled, rows = not self.small, 2 if self.small else 64
        ours = self.figures["overnight"]["tokens_per_second"]
        others = {LECTURE: (peers.lecture, rows // 2)}
        if self.nanogpt:
            others["nanoGPT, compiled"] = partial(peers.nanogpt, self.nanogpt.resolve()), rows // 4
        others["transformers, compiled"] = peers.transformers, rows // 4
        for name, (step, fits) in others.items():

            def beside(name: str = name, step: Any = step, fits: int = fits) -> None:
                theirs = self.steps(name, step, max(1, fits), compiled)
                goal = "1.25 of the lecture's code" if name == LECTURE else ""
                self.row(f"  {name}", f"{theirs:,.0f}: ours {ours / theirs:.2f} times as fast", goal)

            self.part(f"  {name}", beside, 90)

    # What stands around the steps

    def made(self) -> GPT:
        return GPT(self.model, IDS).init_weights(1).to(self.device).eval()

    def timed(self, work: Callable[[], object]) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    def evaluating(self) -> None:
        model, here = self.made(), world.World(self.device)
        count, lengths = (5_000, 20) if self.small else (10_485_760, 10_042)
        tokens, ones = stopwatch.tokens(IDS, count + 1), np.ones(IDS, dtype=np.int64)
        T = self.model.block_size
        self.timed(lambda: dict(validation(model, tokens, ones, T, 100 * T, here, self.autocast)))
        seconds = self.timed(lambda: dict(validation(model, tokens, ones, T, None, here, self.autocast)))
        rate = self.figures.get("overnight", {}).get("tokens_per_second")
        share = seconds / (seconds + INTERVAL * HALF_MILLION / rate) if rate else None
        self.keep("validation", tokens=count, seconds=seconds, share=share)
        of = f", {share:.1%} of {INTERVAL} steps with it" if share else ""
        self.row(f"validation of {count:,} tokens", f"{seconds:.2f} s{of}", AIMS["validation"])
        # Lengths as HellaSwag's validation items have them: contexts of 20 to 110 tokens, endings of 5 to 45.
        draw = np.random.default_rng(1)

        def ids(least: int, most: int) -> list[int]:
            return draw.integers(0, IDS, draw.integers(least, most)).tolist()

        longest = min(45, T // 4)
        items = [Item(ids(5, 2 * longest), [ids(5, longest) for _ in range(4)]) for _ in range(lengths)]
        score(model, items[:50], here, self.autocast)
        seconds = self.timed(lambda: score(model, items, here, self.autocast))
        self.keep("hellaswag", items=lengths, seconds=seconds)
        self.row(f"HellaSwag's shapes, {lengths:,} items", f"{seconds:.2f} s", AIMS["hellaswag"])

    def sampling(self) -> None:
        model, length = self.made(), 16 if self.small else 512
        for batch in (1, 64):
            prompts = list(torch.randint(IDS, (batch, 16), device=self.device))

            def write(count: int = length, prompts: list[torch.Tensor] = prompts) -> None:
                with self.autocast():
                    for _ in generate(model, prompts, count, Sampling(temperature=0.9, top_k=50), seed=1):
                        pass

            write(8)
            seconds = [self.timed(write) for _ in range(3)]
            rate = batch * length / statistics.median(seconds)
            name = f"sampling, batch {batch}"
            self.keep(name, new_tokens=length, tokens_per_second=round(rate))
            self.row(name, f"{rate:,.0f} tokens/s", AIMS[name])

    def profile(self) -> None:
        """Where a step of four micro-batches goes; by which kernels attention is computed."""
        rows = 2 if self.small else 64
        setting = peers.Setting(self.model, rows, self.device.type, self.half, not self.small, 4)
        step = peers.overnight(setting)
        for _ in range(3):
            step()
        with torch.profiler.profile() as profiler:
            for _ in range(2):
                step()
        with tempfile.TemporaryDirectory() as folder:
            trace = profiling.write_trace(profiler, Path(folder) / "trace.json")
        found = profiling.spent(trace)
        names = sorted({e["name"] for e in trace if e.get("cat") == "kernel"})
        kernels = [name[:90] for name in names if profiling.kind_of(name) == "attention"]
        self.keep("profile", ms=found.kinds, longest=found.longest, attention=kernels)
        for kind, ms in found.kinds.items():
            self.row(f"  of a step, {kind}", f"{ms / found.step_ms:.1%}")
        for name in kernels:
            self.row("  attention by", name)

    def climb(self) -> None:
        """The ladder at the lecture's 16 x 1024."""
        place = ladder.place_of(self.device)
        model = replace(self.model, vocab_size=IDS)
        first = ladder.first_config(model, 2 if self.small else 16, place)
        rungs: list[dict[str, Any]] = []
        self.keep("ladder", rungs=rungs)
        for climbed in ladder.climb(first, IDS, place, 20, 0.5 if self.small else 5.0, progress):
            rungs.append(climbed.described(place))
            gain = f", {climbed.gain:.2f}x" if climbed.gain else ""
            lecture = f"A100: {climbed.rung.lecture_ms}" if climbed.rung.lecture_ms else ""
            took = f"{climbed.found.ms:.1f} ms{gain}" if climbed.found else climbed.reason
            left_out = " (not kept)" if climbed.found and not climbed.kept else ""
            self.row(f"ladder, {climbed.name}", took + left_out, lecture)
            if not self.small and self.left() < A_RUNG:
                self.row("ladder", "the rest left out: no time")
                return


PARTS: dict[str, tuple[Callable[[Bench], None], float]] = {  # and the seconds that each wants
    "training": (Bench.training, 120),
    "modern": (Bench.modern, 90),
    "others": (Bench.others, 90),
    "evaluation": (Bench.evaluating, 40),
    "sampling": (Bench.sampling, 40),
    "profile": (Bench.profile, 60),
    "ladder": (Bench.climb, A_RUNG),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--nanogpt", type=Path)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--only", nargs="*", choices=list(PARTS))
    options = parser.parse_args()
    bench = Bench(options)
    for name in PARTS if options.only is None else options.only:
        work, needs = PARTS[name]
        bench.part(name, partial(work, bench), needs)
    print(f"\n{bench.card}, torch {torch.__version__}; on the right what an H200 is meant to reach\n")
    for what, figure, goal in bench.rows:
        print(f"{what:48} {figure:48} {goal}".rstrip())


if __name__ == "__main__":
    main()
