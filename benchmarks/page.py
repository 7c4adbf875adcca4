"""docs/performance.md, docs/recipes.md and the README's figures, from the results that are committed.

    python benchmarks/page.py [--check]     --check: exit code 1 where they are not what the results say

The words are those of performance.template.md; here is what stands in its tables.
"""

import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import gpu_page
import recipes_page
from tables import load, measured, table

HERE = Path(__file__).parent
ROOT = HERE.parent
PAGE, README = ROOT / "docs" / "performance.md", ROOT / "README.md"
BEGIN, END = "<!-- figures: benchmarks/page.py -->", "<!-- end of figures -->"


def milliseconds(ms: float) -> str:
    return f"{ms / 1000:.2f} s" if ms >= 1000 else f"{ms:.1f} ms"


# The README's table: what, figure, what stands beside it.


def readme_rows() -> Iterator[list[str]]:
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
    for batch, words in ((1, "one text"), (8, "eight texts")):
        found = load("sampling")["figures"][f"batch {batch}"]
        yield [
            f"sampling, GPT-2 124M, {words}",
            f"{found['overnight_tokens_per_second']:.1f} tokens/s",
            f"transformers {found['transformers_tokens_per_second']:.1f}",
        ]
    serving, report = load("serving")["figures"], load("report")["figures"]
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
    yield [
        "spoiled files given to each of 37 readers (`benchmarks/fuzz.py`)",
        f"{load('fuzz')['figures']['cases']:,}, none escaped",
        "",
    ]
    yield [
        "one of two hosts lost (`benchmarks/nodes.py`)",
        "noticed after 38 s, both train on 13 s after its return",
        "",
    ]


# The tables of docs/performance.md, by the names that the template has for them.


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


def page() -> str:
    text = (HERE / "performance.template.md").read_text()
    for name, (result, make) in TABLES.items():
        found = f"{make()}\n\n{measured(result)}"
        text = text.replace(f"{{{{{name}}}}}", found)
    return text


def readme() -> str:
    before, rest = README.read_text().split(BEGIN)
    on_cpu = table(["what", "figure", "beside it"], [list(row) for row in readme_rows()])
    on_gpu = table(["what", "figure", "the aim"], [*gpu_page.rows(), gpu_page.crossing_row()])
    figures = f"{on_cpu}\n\nOn a GPU: {measured('gpu')}.\n\n{on_gpu}"
    return f"{before}{BEGIN}\n{figures}\n{END}{rest.split(END)[1]}"


def main(*options: str) -> int:
    for path, text in ((PAGE, page()), (README, readme()), (recipes_page.PAGE, recipes_page.page())):
        if "--check" not in options:
            path.write_text(text)
        elif path.read_text() != text:
            print(f"{path.name} is not what the results say: python benchmarks/page.py", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
