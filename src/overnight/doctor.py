"""`overnight doctor`: what this machine can do, and what would go wrong."""

import math
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import nullcontext

import torch

from overnight import plan, world
from overnight.config import ModelConfig, OptimConfig
from overnight.data import tokens
from overnight.errors import DONE, FAILURE
from overnight.machine import cpu_count, cpu_name, memory
from overnight.models.networks import build
from overnight.optim import adamw
from overnight.step import train_step
from overnight.terminal import say, size

# The lecture's example of tokenisation.
HELLO = ("Hello, I'm a language model,", [15496, 11, 314, 1101, 257, 3303, 2746, 11])

Finding = tuple[str, str, str]  # what; "ok", "note" or "FAIL"; details


def examine(device: str) -> int:
    """Print what was found; exit code 1 if something would go wrong."""
    failed = False
    with world.connect(device) as here:
        for what, verdict, details in findings(here.device):
            failed |= verdict == "FAIL"
            say(f"{what:10} {verdict:5} {details}")
    return FAILURE if failed else DONE


def findings(device: torch.device) -> Iterator[Finding]:
    yield "python", "ok", f"{platform.python_version()}, torch {torch.__version__}, {platform.platform()}"
    yield device_finding(device)
    yield precision_finding(device)
    yield compile_finding(device)
    yield memory_finding(device)
    free = shutil.disk_usage(".").free
    enough = free > 30e9
    yield (
        "disk",
        "ok" if enough else "note",
        f"{size(free)} free here"
        + ("" if enough else "; FineWeb-Edu's 10 B tokens need 20 GB, the 124M's checkpoints 1.5 GB each"),
    )
    try:
        right = tokens.gpt2().encode(HELLO[0]).tolist() == HELLO[1]
    except Exception as error:  # whatever breaks, the other findings are still wanted
        yield "tokenizer", "FAIL", f"GPT-2's does not load: {error}"
    else:
        yield "tokenizer", "ok" if right else "FAIL", "GPT-2's, 50,257 ids, no network needed"
    yield learning_finding(device)


def device_finding(device: torch.device) -> Finding:
    if device.type == "cuda":
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return "device", "ok", f"cuda: {len(names)} x {names[0]}"
    name = f"{device.type}: {cpu_name()}, {cpu_count()} CPUs, {torch.get_num_threads()} threads"
    if torch.version.cuda and device.type == "cpu":
        return "device", "note", f"{name}; this torch is built for CUDA but finds no GPU (driver?)"
    return "device", "ok", name


def precision_finding(device: torch.device) -> Finding:
    """The choice of `--precision auto`, and the rates of matrix products behind it."""
    chosen = world.choose_precision("auto", device)
    n = 1024 if device.type == "cpu" else 4096
    rates = ", ".join(
        f"{name} {2 * n**3 / seconds / 1e9:,.0f} GFLOP/s"
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
        if (seconds := product_seconds(n, dtype, device))
    )
    return "precision", "ok", f"auto is {chosen}; {n} x {n} products: {rates}"


def product_seconds(n: int, dtype: torch.dtype, device: torch.device) -> float:
    """Time of one n x n matrix product, after one to warm up; one slow product is answer enough."""
    a = torch.ones(n, n, dtype=dtype, device=device)
    seconds = 0.0
    for repeats in (1, 3):
        if seconds > 1.0:
            break
        synchronize(device)
        began = time.perf_counter()
        for _ in range(repeats):
            a @ a
        synchronize(device)
        seconds = (time.perf_counter() - began) / repeats
    return seconds


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def compile_finding(device: torch.device) -> Finding:
    if world.choose_compile("auto", device) == "on":
        return "compile", "ok", "auto is on: Triton is here"
    if device.type == "cuda":
        return "compile", "note", "auto is off: Triton is missing or this GPU too old; training is slower"
    compiler = shutil.which("g++") or shutil.which("clang++")
    return (
        "compile",
        "ok",
        ("auto measures it for runs of hours; " if device.type == "cpu" else "auto is off on this device; ")
        + ("--compile on would work" if compiler else "--compile on would need a C++ compiler"),
    )


def memory_finding(device: torch.device) -> Finding:
    gpt2 = ModelConfig(vocab_size=50_304)
    available = world.device_memory(device, 1)
    precision = world.choose_precision("auto", device)
    rows = plan.largest_micro_batch(gpt2, 64, precision, device.type, available)
    main = memory()
    return (
        "memory",
        "ok" if rows else "note",
        (f"{size(main)} of main memory; " if main else "")
        + (f"{size(available)} on the GPU; " if device.type == "cuda" else "")
        + (
            f"GPT-2 124M fits with --micro-batch {rows}"
            if rows
            else "GPT-2 124M does not fit, small presets do"
        ),
    )


def learning_finding(device: torch.device) -> Finding:
    """Overfit one batch with the real model, step and optimizer: the loss must go from ln(V) to nearly 0."""
    config = ModelConfig(n_layer=2, n_head=2, n_embd=64, block_size=32, vocab_size=64)
    model = build(config, 64).init_weights(seed=1).to(device)
    optim = OptimConfig(lr=1e-2, weight_decay=0.0)
    optimizer = adamw(model, optim)
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    draw = torch.randint(0, 64, (4, 33), generator=torch.Generator().manual_seed(1)).to(device)
    batch = (draw[:, :-1].contiguous(), draw[:, 1:].contiguous())
    losses = [
        train_step(model, optimizer, scaler, [batch], 1, optim.lr, 1.0, nullcontext)[0].item()
        for _ in range(60)
    ]
    works = abs(losses[0] - math.log(64)) < 0.2 and losses[-1] < 0.1
    details = f"one batch overfitted in 60 steps: loss {losses[0]:.2f} (ln 64 = {math.log(64):.2f})"
    return "learning", "ok" if works else "FAIL", f"{details} -> {losses[-1]:.3f}"
