"""The README's table of what was measured on a CPU: what, figure, what it is compared with."""

import statistics
from collections.abc import Iterator

from tables import load, milliseconds


def rows() -> Iterator[list[object]]:
    """What, figure, what it is compared with."""
    yield from training_rows()
    yield from sampling_rows()
    yield from evaluation_rows()
    yield from data_rows()
    yield from weights_rows()
    yield from run_rows()


def training_rows() -> Iterator[list[object]]:
    """Whole runs, steps, and loading batches."""
    quick, seconds = load("quickstart")["figures"], load("quickstart")["figures"]["seconds"]
    yield [
        "`make quickstart` after the install",
        f"{quick['seconds_in_all']:.0f} s, of which training {seconds['train']:.0f} s; "
        f"{quick['bits_per_byte']:.3f} bits per byte",
        "`xz -9e` of the same text: 1.841",
    ]
    shakespeare = load("shakespeare")["figures"]
    yield [
        "`shakespeare-cpu`, 2,000 steps and the whole validation split",
        f"{shakespeare['seconds_in_all']:.0f} s, loss {shakespeare['val_loss']:.3f}",
        "",
    ]
    modern = load("modern")["figures"]["modern-shakespeare-cpu"]
    yield [
        "`modern-shakespeare-cpu`, 160 steps, from the command to its end, median of 4 seeds",
        f"{modern['median_seconds']:.0f} s, loss {modern['median_loss']:.3f}",
        "nanoGPT's README run: 141 s, loss 1.898",
    ]
    step = load("step")["figures"]
    for shape, found in step.items():
        if "overnight_step_ms" in found:
            others = ", ".join(
                f"{who} {milliseconds(found[f'{key}_step_ms']['median'])}"
                for key, who in (("nanogpt", "nanoGPT"), ("transformers", "transformers"))
                if f"{key}_step_ms" in found
            )
            yield [f"a step, {shape}", milliseconds(found["overnight_step_ms"]["median"]), others]
    loading = step["loading, 64 x 1024"]
    yield [
        "loading a micro-batch of 64 x 1,024",
        f"{loading['median']:.1f} ms, beside the computation",
        f"{loading['share_percent']:.1f}% of its time at 600,000 tokens/s",
    ]


def sampling_rows() -> Iterator[list[object]]:
    """Sampling, serving and the dashboard."""
    for batch, words in ((1, "one text"), (8, "eight texts")):
        found = load("sampling")["figures"][f"batch {batch}"]
        yield [
            f"sampling, GPT-2 124M, {words}",
            f"{found['overnight_tokens_per_second']:.1f} tokens/s",
            f"transformers {found['transformers_tokens_per_second']:.1f}",
        ]
    serving = load("serving")["figures"]
    many, one = (serving["32 clients, quickstart"][who] for who in ("many", "one"))
    yield [
        f"serving the quickstart's model to {many['clients']} clients for a minute",
        f"{many['tokens_per_second']:,.0f} tokens/s, {many['errors']} errors, "
        f"slowest answer {many['latency_ms']['max'] / 1000:.1f} s",
        f"one client: {one['tokens_per_second']:,.0f} tokens/s",
    ]
    added = {}
    for name in ("quickstart", "GPT-2 124M"):
        percent = max(serving[f"one client, {name}"]["overhead_percent"].values())
        added[name] = f"{percent:.0f}%" if percent >= 1 else "under 1%"
    yield [
        "what serving adds to sampling one text",
        f"GPT-2 124M {added['GPT-2 124M']}, the quickstart's model {added['quickstart']}",
        "",
    ]
    if pages := serving.get("pages"):
        yield [
            "the dashboard: first paint; from a record to the screen, at most",
            f"{pages['first_paint_ms']['median']} ms; {pages['record_to_screen_ms']['max'] / 1000:.1f} s",
            "",
        ]


def evaluation_rows() -> Iterator[list[object]]:
    """Reports and HellaSwag."""
    report = load("report")["figures"]
    yield [
        f"`report` of {report['steps']:,} steps",
        f"{report['seconds']['one run']['median']:.1f} s",
        f"of three such runs: {report['seconds']['three runs']['median']:.1f} s",
    ]
    hellaswag = load("hellaswag")["figures"]
    yield [
        "HellaSwag, GPT-2 124M, 1,000 items",
        f"{hellaswag['overnight_items_per_second']:.1f} items/s",
        f"four padded rows, all logits: {hellaswag['lecture_items_per_second']:.1f}",
    ]


def data_rows() -> Iterator[list[object]]:
    """Preparing data."""
    prepare = {name: found["mb_per_second"] for name, found in load("prepare")["figures"].items()}
    yield [
        "`prepare`, GPT-2's tokenizer, tiktoken",
        f"{prepare['tiktoken, text, 1 worker']:.1f} MB/s with one worker, "
        f"{prepare['tiktoken, text, 2 workers']:.1f} with two; "
        f"parquet {prepare['tiktoken, parquet, 1 worker']:.1f} with one",
        "",
    ]
    yield [
        "the same with gigatoken (`fast`), one worker",
        f"{prepare['gigatoken, text, 1 worker']:.0f} MB/s; "
        f"parquet {prepare['gigatoken, parquet, 1 worker']:.0f}",
        "",
    ]
    tokenizer = load("tokenizer")["figures"]["python source"]["mb_per_second"]
    yield [
        "tokenising Python source on one core, gigatoken",
        f"{tokenizer['in prepare']:.0f} MB/s, the same ids",
        f"tiktoken {tokenizer['tiktoken']:.1f}",
    ]


def weights_rows() -> Iterator[list[object]]:
    """Weights from and to other formats."""
    weights = load("weights")["figures"]["beyond_importing_torch"]
    yield [
        "GPT-2 124M from its folder to logits, beyond importing torch",
        f"{weights['logits']:.1f} s",
        "",
    ]
    yield [
        "exporting it to llm.c; to transformers, unchecked and checked",
        f"{weights['export to llmc']:.1f} s; {weights['export to hf, without transformers']:.1f} s, "
        f"{weights['export to hf, checked']:.1f} s",
        f"importing transformers: {weights['import torch and transformers']:.2f} s",
    ]


def run_rows() -> Iterator[list[object]]:
    """Checkpoints, memory, and what a run survives."""
    saving, memory = load("saving")["figures"], load("memory")["figures"]
    lost = statistics.median(saving["seconds_lost_by_each_save"])
    yield [
        "a checkpoint while GPT-2 124M trains on",
        f"{lost:.1f} s of training lost, {saving['percent_of_250_steps']:.2f}% of 250 "
        f"steps of {saving['step_seconds']:.2f} s",
        "",
    ]
    yield [
        "going on with GPT-2 124M, from the command to its first step",
        f"{saving['resume_to_first_step_seconds']:.1f} s",
        "",
    ]
    yield [
        "memory from step 1,000 to step 10,000 of a small model",
        f"{memory['growth_mb']:.1f} MB more",
        "",
    ]
    crash = load("crash")["figures"]
    kills = [
        f"{crash[name]['survived']} of {crash[name]['kills']}" for name in ("single", "ranks", "prepare")
    ]
    yield [
        "kills survived in a row: one process, two ranks, `prepare` (`benchmarks/crash.py`)",
        ", ".join(kills),
        "",
    ]
    fuzz = load("fuzz")["figures"]
    escaped = sum(one["escaped"] for one in fuzz["readers"].values())
    yield [
        f"spoiled files given to each of {len(fuzz['readers'])} readers (`benchmarks/fuzz.py`)",
        f"{fuzz['cases']:,}, {escaped or 'none'} escaped",
        "",
    ]
    yield [
        "one of two hosts lost (`benchmarks/nodes.py`)",
        "noticed after 38 s, both train on 13 s after its return",
        "",
    ]
