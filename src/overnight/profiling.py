"""Where a step goes: torch's profiler around a few steps of a run; a Chrome trace, and a table made from it.

The table sorts what the device was busy with by names: on CUDA those of kernels, on a CPU those of torch's
operations with all that they call. The products of the head count as matrix products, the softmax over the
vocabulary and its gradient as loss. What torch.compile makes of a graph is one operation on a CPU, and
elementwise, but for the products and attention that it calls.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from overnight.files import aside, read_bytes, reason

if TYPE_CHECKING:
    from overnight.journal import Journal

WAIT, STEPS = 4, 3  # steps of this process that warm up; steps that are looked at
LAST = WAIT + 1 + STEPS  # torch's profiler warms up for a step of its own
LONGEST = 12  # names to tell
KINDS = ("attention", "matrix products", "elementwise", "loss", "optimizer", "communication", "data", "gaps")

# The first that finds a name decides. Kernels: cuDNN, FlashAttention, CUTLASS, cuBLAS (nvjet since 12.8),
# Triton's with the operations that were fused into them; operations: torch's own, and oneDNN's.
PATTERNS = {
    "optimizer": r"^optimizer$|multi_tensor_apply|[Ff]used_?[Aa]dam",
    "data": r"^data$|Memcpy HtoD",
    "communication": r"nccl|c10d|gloo|all_?reduce|AllReduce|reduce_scatter|all_gather",
    "attention": r"sdpa|fmha|flash|[Aa]ttention|aten::_softmax|aten::bmm|(?<!log)_softmax",
    "matrix products": r"gemm|nvjet|cutlass|xmma|cublas|splitK|aten::mm$|aten::addmm|aten::linear$|mkldnn::"
    r"|Product",
    "loss": r"log_softmax|nll_loss|MeanLoss|fused_.*(exp|gather).*_eq",
}  # fmt: skip


@dataclass(frozen=True)
class Spent:
    """Where some steps went."""

    steps: int
    step_ms: float
    """Milliseconds of a step, all in all."""
    kinds: dict[str, float]
    """Milliseconds of a step, by kind; they add up to step_ms where nothing runs beside another."""
    longest: list[tuple[str, str, float]]
    """What took longest: a kernel's or operation's name, its kind, milliseconds of a step."""


def kind_of(name: str) -> str | None:
    """The kind that a kernel's or operation's own name tells."""
    return next((kind for kind, pattern in PATTERNS.items() if re.search(pattern, name)), None)


def spent(events: list[dict[str, Any]]) -> Spent:
    """From a trace's events, "step" annotations around the steps among them."""
    complete = [event for event in events if event.get("ph") == "X"]
    steps = [event for event in complete if event["name"] == "step" and event["cat"] == "user_annotation"]
    if not steps:
        raise ValueError("there is no step in the trace")
    kernels = [e for e in complete if e["cat"] in ("kernel", "gpu_memcpy", "gpu_memset")]
    if kernels:
        ours, total = of_steps(complete, kernels)
        busy = list(on_gpu(complete, ours))
        idle = total - covered((e["ts"], e["ts"] + e["dur"]) for e in ours)
    else:
        busy = list(on_cpu(complete, steps))
        total = sum(event["dur"] for event in steps)
        idle = total - sum(took for _, _, took in busy)
    kinds, names = dict.fromkeys(KINDS, 0.0) | {"gaps": idle}, dict[tuple[str, str], float]()
    for name, kind, took in busy:
        kinds[kind] += took
        names[name, kind] = names.get((name, kind), 0.0) + took
    longest = sorted(names, key=names.__getitem__, reverse=True)[:LONGEST]
    each = 1000 * len(steps)  # microseconds in the trace
    return Spent(
        len(steps), total / each, {kind: took / each for kind, took in kinds.items()},
        [(name, kind, names[name, kind] / each) for name, kind in longest],
    )  # fmt: skip


def of_steps(
    events: list[dict[str, Any]], kernels: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], float]:
    """The kernels of training steps, and the microseconds from the first to the last of them, less the times
    between two steps when the GPU did something else (an evaluation)."""
    marks = [e for e in events if e["cat"] == "gpu_user_annotation" and e["name"] == "step"]
    spans = sorted((e["ts"], e["ts"] + e["dur"]) for e in marks)
    if not spans:
        spans = [(min(e["ts"] for e in kernels), max(e["ts"] + e["dur"] for e in kernels))]
    ours, others = list[dict[str, Any]](), list[dict[str, Any]]()
    for kernel in kernels:
        inside = any(begin <= kernel["ts"] < end for begin, end in spans)
        (ours if inside else others).append(kernel)
    total = sum(end - begin for begin, end in spans)
    for (_, end), (begin, _) in pairwise(spans):
        if not any(end <= kernel["ts"] < begin for kernel in others):
            total += max(0.0, begin - end)  # waiting
    return ours, total


def on_gpu(events: list[dict[str, Any]], kernels: list[dict[str, Any]]) -> Iterator[tuple[str, str, float]]:
    """Name, kind and microseconds of each kernel. What runs while the GPU is in the range "optimizer" is
    that, whatever it is called."""
    ranges = [e for e in events if e["cat"] == "gpu_user_annotation" and e["name"] == "optimizer"]
    for kernel in kernels:
        at = kernel["ts"]
        inside = any(e["ts"] <= at < e["ts"] + e["dur"] and e["tid"] == kernel["tid"] for e in ranges)
        kind = "optimizer" if inside else kind_of(kernel["name"]) or "elementwise"
        yield kernel["name"], kind, kernel["dur"]


def on_cpu(events: list[dict[str, Any]], steps: list[dict[str, Any]]) -> Iterator[tuple[str, str, float]]:
    """Name, kind and microseconds of each operation, without those that it calls. It is of the kind that its
    name tells, or that of the innermost around it; all within "optimizer" or "data" is that."""
    thread = {event["tid"] for event in steps}
    ours = [e for e in events if e["tid"] in thread and e["cat"] in ("cpu_op", "user_annotation")]
    around: list[tuple[float, str | None, list]] = []  # ends, kind, [name, kind, time of its own]
    done = []
    for event in sorted(ours, key=lambda e: (e["ts"], -e["dur"])):
        while around and around[-1][0] <= event["ts"]:
            around.pop()
        inherited = around[-1][1] if around else None
        own = kind_of(event["name"])
        kind = inherited if inherited in ("optimizer", "data") else own or inherited
        operation = [re.sub(r" \w{40,} ", " ", event["name"]), kind or "elementwise", event["dur"]]
        if around:
            around[-1][2][2] -= event["dur"]
        inside = any(e["ts"] <= event["ts"] < e["ts"] + e["dur"] for e in steps)
        # What a range takes of its own is Python's, but in these two, which wait.
        if inside and (event["cat"] == "cpu_op" or kind in ("optimizer", "data")):
            done.append(operation)
        around.append((event["ts"] + event["dur"], kind, operation))
    yield from (tuple(operation) for operation in done)


def covered(spans: Iterator[tuple[float, float]]) -> float:
    """The length of what at least one of the spans covers."""
    length, until = 0.0, -float("inf")
    for begin, end in sorted(spans):
        length += max(0.0, end - max(begin, until))
        until = max(until, end)
    return length


def table(found: Spent) -> Iterator[str]:
    """For reading, in lines."""
    yield f"Where a step goes ({found.steps} steps of {found.step_ms:,.2f} ms, with the profiler watching):"
    for kind, ms in found.kinds.items():
        yield f"  {kind:16} {ms:>10,.2f} ms {ms / found.step_ms:>6.1%}"
    yield "What takes longest:"
    for name, kind, ms in found.longest:
        yield f"  {kind:16} {ms:>10,.2f} ms  {name[:80]}"


def write_trace(profiler: profile, path: Path) -> list[dict[str, Any]]:
    """Write what was seen as a Chrome trace; its events. torch opens files by name, through whatever links a
    stranger has put there, and leaves halves of them on a full disk: it gets a new folder to itself."""
    folder = aside(path)
    folder.mkdir(mode=0o700)
    try:
        trace = folder / path.name
        profiler.export_chrome_trace(str(trace))
        if not trace.exists():  # torch does not tell
            raise OSError("torch could not write the trace; is the disk full?")
        events = json.loads(read_bytes(trace, most=1 << 40))["traceEvents"]
        os.replace(trace, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return events


class Profile:
    """Of a run, where it is wanted: `step` after each update; the rest happens by itself. Every rank has one,
    so that all read their numbers at the same steps; the first alone looks."""

    def __init__(self, wanted: bool, main: bool, journal: "Journal", device: torch.device):
        self.journal, self.trace = journal, journal.run / "profile.json"
        self.wanted, self.at, self.steps = wanted, 0, 0
        self.profiler: profile | None = None
        if wanted and main:
            activities = [ProfilerActivity.CPU]
            if device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            steps = schedule(wait=WAIT, warmup=1, active=STEPS, repeat=1)
            self.profiler = profile(activities=activities, schedule=steps, on_trace_ready=self.finish)
            self.profiler.start()

    @property
    def turns(self) -> bool:
        """Whether the next `step` begins or ends the looking: what the device has to do shall be done."""
        return self.wanted and self.steps + 1 in (WAIT + 1, LAST)

    def step(self, step: int) -> None:
        """Update number `step` is done."""
        self.at, self.steps = step, self.steps + 1
        if self.profiler:
            self.profiler.step()
            if self.steps == LAST:
                self.close()

    def finish(self, profiler: profile) -> None:
        """Enough was seen: write the trace and tell what is in it."""
        if self.steps < LAST:
            return
        try:
            found = spent(write_trace(profiler, self.trace))
        except (OSError, RuntimeError, ValueError) as error:  # a full disk costs the profile, not the run
            self.journal.say(f"{self.trace}: the profile could not be written: {reason(error)}.")
            return
        detail = {"steps": found.steps, "step_ms": found.step_ms, "ms": found.kinds, "longest": found.longest}
        self.journal.event(self.at, "profile", detail)
        for line in table(found):
            self.journal.say(line)
        self.journal.say(f"{self.trace}: the trace, for chrome://tracing or ui.perfetto.dev.")

    def close(self) -> None:
        if self.profiler:
            self.profiler.stop()
            self.profiler = None
            if self.steps < LAST:
                self.journal.say(f"No profile: it takes {LAST} steps of one process.")
