"""The tables of docs/performance.md, by the names that performance.template.md has for them."""

from collections.abc import Callable

import gpu_page
from tables import load, milliseconds, table


def step_table() -> str:
    rows: list[list[object]] = []
    for shape, found in load("step")["figures"].items():
        for who in ("overnight", "nanogpt", "transformers", "torch_modules"):
            if ms := found.get(f"{who}_step_ms"):
                times = found.get(f"times_as_fast_as_{who}")
                cells = [milliseconds(ms[name]) for name in ("median", "tenth", "max")]
                rows.append([shape, NAMES[who], *cells, f"{times:.2f}" if times else ""])
    head = ["shape", "whose", "median", "fastest tenth", "slowest", "Overnight is so many times as fast"]
    return table(head, rows)


NAMES = {
    "overnight": "Overnight",
    "nanogpt": "nanoGPT's model.py",
    "transformers": "transformers",
    "torch_modules": "torch's own modules",
}


def ladder_table() -> str:
    rows: list[list[object]] = []
    for rung in load("ladder")["figures"]["rungs"]:
        lecture = f"{rung['lecture_ms']:,.0f}" if rung["lecture_ms"] else ""
        if rung["reason"]:
            rows.append([rung["name"], rung["reason"], "", "", lecture])
            continue
        gain = f"{rung['gain']:.2f}" if rung["gain"] else ""
        left_out = "" if rung["kept"] else ", not kept"
        memory = f"{rung['peak_memory_bytes'] / 1e9:.2f} GB" if rung["peak_memory_bytes"] else ""
        rows.append([rung["name"], f"{rung['ms']:.1f}", f"{gain}{left_out}", memory, lecture])
    return table(["rung", "ms a step", "gain", "memory", "the lecture, A100"], rows)


def sampling_table() -> str:
    rows: list[list[object]] = []
    for batch in (1, 8):
        found = load("sampling")["figures"][f"batch {batch}"]
        ours, theirs = (found[f"{who}_tokens_per_second"] for who in ("overnight", "transformers"))
        rows.append([batch, f"{ours:.1f}", f"{theirs:.1f}", f"{found['ratio']:.2f}"])
    return table(["texts at a time", "tokens/s", "transformers", "times as fast"], rows)


def serving_table() -> str:
    found = load("serving")["figures"]
    rows: list[list[object]] = []
    for name, one in found.items():
        if name.startswith("one client"):
            rates = one["tokens_per_second"]
            cells = [f"{rates[how]:,.1f}" for how in ("generate", "served", "streamed")]
            rows.append([name.removeprefix("one client, "), *cells])
    alone = table(["one text", "tokens/s without a server", "served", "streamed"], rows)
    rows = []
    for who in ("one", "many"):
        load_of = found["32 clients, quickstart"][who]
        latency, clients = load_of["latency_ms"], load_of["clients"]
        told = [f"{latency[name]:,.0f} ms" for name in ("median", "p95", "max")]
        least, most = load_of["least_and_most_tokens_of_a_client"]
        rows.append([clients, f"{load_of['tokens_per_second']:,.0f}", *told, f"{least:,} to {most:,}"])
    head = [
        "clients, 64 tokens a request",
        "tokens/s",
        "an answer, median",
        "p95",
        "slowest",
        "tokens a client",
    ]
    return f"{alone}\n\n{table(head, rows)}"


def loading_table() -> str:
    found = load("step")["figures"]["loading, 64 x 1024"]
    cells = [f"{found[name]:.2f} ms" for name in ("median", "max")]
    return table(
        ["a micro-batch of 64 x 1,024", "slowest", "share of its time at 600,000 tokens/s"],
        [[*cells, f"{found['share_percent']:.1f}%"]],
    )


def residual_table() -> str:
    found = load("residual")["figures"]
    rows: list[list[object]] = [
        [kind, ", ".join(f"{loss:.4f}" for loss in found[f"val_loss_{kind}"])] for kind in ("bf16", "fp32")
    ]
    rows.append(["difference of the means", f"{found['difference_of_means']:+.4f}"])
    rows.append(["standard deviation of the seeds", f"{found['deviation_of_seeds']:.4f}"])
    return table(["residual stream", f"validation loss after {found['steps']:,} steps, by seed"], rows)


TABLES: dict[str, tuple[str, Callable[[], str]]] = {  # the result that each is made from
    "step": ("step", step_table),
    "ladder": ("ladder", ladder_table),
    "sampling": ("sampling", sampling_table),
    "serving": ("serving", serving_table),
    "loading": ("step", loading_table),
    "residual": ("residual", residual_table),
    "gpu": ("gpu", gpu_page.gpu_table),
}
