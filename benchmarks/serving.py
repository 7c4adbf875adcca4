"""`overnight serve` under load: what it adds to sampling, 32 clients for a minute, how soon a page shows.

    python benchmarks/serving.py [--seconds 60]

Two models: the quickstart's shape, trained for a few steps, and GPT-2 124M's with random weights. Sampling
without a server is `generate` in a process of its own; both take turns. Clients are threads of this process.
Pages are looked at where a Chromium is.
"""

import argparse
import contextlib
import http.client
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import Any

from common import in_turn, overnight, progress, save

JSON = {"Content-Type": "application/json"}
CLIENTS, TOKENS = 32, 64
KEPT = contextlib.ExitStack()
ONE = {"quickstart": 400, "GPT-2 124M": 48}  # tokens of a text where one client asks alone


@contextlib.contextmanager
def serving(model: str, home: Path) -> Iterator[tuple[int, int]]:
    """A server's port and process."""
    command = [sys.executable, "-m", "overnight", "serve", model, "--port", "0"]
    process = subprocess.Popen(command, cwd=home, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        process.stdout.readline()
        address = process.stdout.readline()
        process.stdout.readline()
        yield int(address.rstrip().rstrip("/").rpartition(":")[2]), process.pid
    finally:
        process.terminate()
        process.wait()


def complete(port: int, **fields: Any) -> int:
    """One request, streamed or not; the tokens that came. Raises where anything is wrong."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    with contextlib.closing(connection):
        connection.request("POST", "/v1/completions", json.dumps(fields), JSON)
        answer = connection.getresponse()
        body = answer.read().decode()
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {body[:200]}")
        if not fields.get("stream"):
            return json.loads(body)["usage"]["completion_tokens"]
        told = [line[6:] for line in body.split("\n\n") if line.startswith("data: ")]
        if told[-1] != "[DONE]":
            raise RuntimeError(f"a stream ended with {told[-1][:200]}")
        return json.loads(told[-2])["usage"]["completion_tokens"]


def asked(model: str, tokens: int, stream: bool, seed: int) -> dict[str, Any]:
    usage = {"stream_options": {"include_usage": True}} if stream else {}
    return {
        "model": model,
        "prompt": "def ",
        "max_tokens": tokens,
        "seed": seed,
        "stream": stream,
        "temperature": 0,
    } | usage


# What serving adds at batch 1.


def sampler(model: str, home: str, tokens: int) -> Callable[[], object]:
    """`generate` as `overnight sample` calls it, without a server."""
    import os

    import torch

    from overnight import resolve, world
    from overnight.decode import Sampling
    from overnight.generate import texts

    os.chdir(home)
    KEPT.enter_context(world.connect("cpu"))  # threads, memory: as the command has them
    loaded = resolve.load(model, torch.device("cpu"))
    assert loaded.tokenizer
    return lambda: texts(loaded.model, loaded.tokenizer, ["def "], tokens, Sampling(0), 1)


def client(port: int, name: str, tokens: int, stream: bool) -> Callable[[], object]:
    return partial(complete, port, **asked(name, tokens, stream, 1))


def alone(model: str, home: Path, tokens: int) -> dict[str, Any]:
    """Tokens a second of one text, with and without the server."""
    with serving(model, home) as (port, _):
        written = complete(port, **asked(model, tokens, False, 1))
        make = {
            "generate": partial(sampler, model, str(home), tokens),
            "served": partial(client, port, model, tokens, False),
            "streamed": partial(client, port, model, tokens, True),
        }
        seconds = in_turn(make, rounds=7)
    rates = {how: written / statistics.median(took) for how, took in seconds.items()}
    return {
        "tokens": written,
        "tokens_per_second": {how: round(rate, 1) for how, rate in rates.items()},
        "overhead_percent": {
            how: round(100 * (rates["generate"] / rates[how] - 1), 1) for how in ("served", "streamed")
        },
    }


# Many clients.


def load(port: int, name: str, clients: int, seconds: float) -> dict[str, Any]:
    """So many clients at once, each with the next request as soon as the last is answered."""
    end = monotonic() + seconds
    tokens, errors = [0] * clients, list[str]()
    latencies: list[list[float]] = [[] for _ in range(clients)]

    def run(number: int) -> None:
        draw = random.Random(number)
        while monotonic() < end:
            began = perf_counter()
            try:
                got = complete(port, **asked(name, TOKENS, draw.random() < 0.5, draw.randrange(2**31)))
            except (RuntimeError, OSError, ValueError) as error:
                errors.append(f"{type(error).__name__}: {error}"[:200])
                return
            if monotonic() <= end:
                tokens[number] += got
                latencies[number].append(perf_counter() - began)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    every = sorted(one for mine in latencies for one in mine)
    return {
        "clients": clients,
        "seconds": seconds,
        "requests": len(every),
        "errors": len(errors),
        "first_errors": errors[:3],
        "tokens_per_second": round(sum(tokens) / seconds, 1),
        "latency_ms": {
            "median": round(1000 * every[len(every) // 2], 1),
            "p95": round(1000 * every[int(0.95 * len(every))], 1),
            "max": round(1000 * every[-1], 1),
        },
        "least_and_most_tokens_of_a_client": [min(tokens), max(tokens)],
    }


def resident(pid: int) -> float:
    """Memory of a process, MB; NaN where /proc is not."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
    return float("nan")


def crowd(home: Path, seconds: float) -> dict[str, Any]:
    """32 clients beside one; memory from the first ten seconds to the end."""
    with serving("quickstart", home) as (port, pid):
        one = load(port, "quickstart", 1, seconds / 4)
        load(port, "quickstart", CLIENTS, 10)
        before = resident(pid)
        many = load(port, "quickstart", CLIENTS, seconds)
        after = resident(pid)
    times = many["tokens_per_second"] / one["tokens_per_second"]
    return {
        "one": one, "many": many, "times_one": round(times, 2),
        "memory_mb": {"after 10 s": round(before, 1), "at the end": round(after, 1)},
    }  # fmt: skip


# Pages.


def pages(home: Path) -> dict[str, Any] | None:
    """First paint of the dashboard, and how long a record takes from the disk to the screen."""
    chromium = shutil.which("chromium")
    if not chromium:
        progress("no Chromium here: pages are not looked at")
        return None
    from playwright.sync_api import sync_playwright

    records = home / "runs" / "quickstart" / "records.jsonl"
    paints, news = [], []
    with serving("quickstart", home) as (port, _), sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args="--no-sandbox --disable-gpu --no-first-run --disable-background-networking".split(),
        )
        for _ in range(5):
            page = browser.new_context().new_page()
            page.goto(f"http://127.0.0.1:{port}/")
            page.wait_for_selector("[data-chart=lr] .scatterlayer path", state="attached")
            entries = "performance.getEntriesByName('first-contentful-paint').map(entry => entry.startTime)"
            paints += page.evaluate(entries)
        head = {"kind": "event", "step": 1, "tokens": 1, "time": "2026-01-01T00:00:00.000Z", "detail": {}}
        for number in range(20):
            sleep(random.Random(number).random())
            with open(records, "a") as file:
                file.write(json.dumps(head | {"name": f"news {number}"}) + "\n")
            began = perf_counter()
            page.get_by_text(f"news {number}", exact=True).wait_for(state="attached")
            news.append(perf_counter() - began)
        browser.close()
    return {
        "first_paint_ms": {"median": round(statistics.median(paints)), "max": round(max(paints))},
        "record_to_screen_ms": {
            "median": round(1000 * statistics.median(news)), "max": round(1000 * max(news))
        },
    }  # fmt: skip


def random_gpt2(folder: Path) -> None:
    """GPT-2 124M with random weights, as transformers keeps it."""
    from overnight.config import ModelConfig
    from overnight.data import tokens
    from overnight.models.gpt2 import GPT
    from overnight.weights import export
    from overnight.weights.tensors import Weights

    tokenizer = tokens.gpt2()
    config = ModelConfig(vocab_size=tokenizer.vocab_size)
    model = GPT(config, tokenizer.vocab_size).init_weights(1)
    weights = Weights(config, dict(model.state_dict()), tokenizer, tokenizer.vocab_size)
    export.to_hf(weights, tokenizer, folder, "", lambda: None)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        with contextlib.chdir(home):
            progress("a run of the quickstart's shape")
            overnight("prepare", "stdlib")
            overnight("train", "quickstart", "--steps", "400", "--eval-every", "100", "--sample-every", "200")
            random_gpt2(home / "gpt2")
        figures: dict[str, Any] = {}
        for label, model in (("quickstart", "quickstart"), ("GPT-2 124M", "hf:./gpt2")):
            progress(f"one client, {label}")
            figures[f"one client, {label}"] = alone(model, home, ONE[label])
        progress(f"{CLIENTS} clients")
        figures[f"{CLIENTS} clients, quickstart"] = crowd(home, wanted.seconds)
        if found := pages(home):
            figures["pages"] = found
    save("serving", figures)


if __name__ == "__main__":
    main()
