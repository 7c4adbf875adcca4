"""What only a GPU can show. Each test is small; `benchmarks/gpu.sh` measures."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.conftest import MODERN as MODERN_OPTIONS
from tests.conftest import TINY
from tests.violence import assert_same_end, wait_for_step

from overnight import decode, ladder, profiling
from overnight.config import Config, ModelConfig, OptimConfig
from overnight.data.batches import Batches
from overnight.data.shards import Tokens
from overnight.evals.loss import validation
from overnight.generate import generate
from overnight.models.networks import build
from overnight.slots import Slots, Text
from overnight.step import Engine
from overnight.world import World

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA")

MODEL = ModelConfig(2, 4, 256, 128, 512)
CONFIG = Config(
    data="", run="", steps=100, batch_tokens=4 * 128, micro_batch=2, device="cuda", precision="bf16",
    compile="off", model=MODEL, optim=OptimConfig(warmup_steps=0),
)  # fmt: skip
MODERN = replace(
    CONFIG,
    model=replace(MODEL, architecture="modern", bias=False, activation="relu2"),
    optim=OptimConfig(algorithm="muon", lr=0.02, min_lr=0.0, warmup_steps=0, schedule="trapezoid"),
)
TOKENS = Tokens([np.random.default_rng(1).integers(0, 500, 20_000)])


@pytest.fixture
def here() -> World:
    return World(torch.device("cuda", 0))


def fail(line: str) -> None:
    raise AssertionError(line)


def engine_of(config: Config, world: World) -> Engine:
    batches = Batches(TOKENS, 128, config.sequences, seed=1)
    return Engine(build(config.model, 500).init_weights(1), config, batches, world, fail)


def losses(config: Config, world: World, steps: int = 5) -> list[float]:
    with closing(engine_of(config, world)) as engine:
        return [engine.update(step)[0].item() for step in range(1, steps + 1)]


@pytest.fixture
def no_synchronisation() -> Iterator[None]:
    """In here a wait of the host for the GPU is an error."""
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("config", [CONFIG, MODERN], ids=["gpt2", "modern"])
@pytest.mark.parametrize("compiled", ["off", "on"])
def test_the_host_does_not_wait_inside_a_step(
    compiled: str, config: Config, here: World, no_synchronisation: None
) -> None:
    with closing(engine_of(replace(config, compile=compiled), here)) as engine:
        for step in (1, 2):  # libraries set themselves up
            engine.update(step)
        torch.cuda.set_sync_debug_mode("error")
        found = [engine.update(step)[0] for step in (3, 4, 5)]
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(torch.stack(found)).all()


@pytest.mark.parametrize(("config", "near"), [(CONFIG, 1e-4), (MODERN, 2e-2)], ids=["gpt2", "modern"])
def test_the_gpu_trains_as_the_cpu_does(config: Config, near: float, here: World) -> None:
    """But for Muon's products, which are bf16 there."""
    config = replace(config, precision="fp32")
    cpu = losses(replace(config, device="cpu"), World(torch.device("cpu")))
    assert losses(config, here) == pytest.approx(cpu, abs=near)


def test_the_residual_stream_is_bf16_where_it_is_asked(here: World) -> None:
    """Norms and powers are fp32 under CUDA's autocast; the stream shall not be."""
    seen = []
    for config in (CONFIG, MODERN):
        model = build(config.model, 500).init_weights(1).to(here.device)
        model.h[1].register_forward_pre_hook(lambda block, inputs: seen.append(inputs[0].dtype))
        with torch.autocast("cuda", torch.bfloat16), torch.no_grad():
            model.hidden(torch.zeros(1, 8, dtype=torch.long, device=here.device))
    assert seen == [torch.bfloat16, torch.bfloat16]


@pytest.mark.parametrize("residual", ["low", "fp32"])
def test_the_modern_network_in_bf16_is_near_that_in_fp32(residual: str, here: World) -> None:
    config = replace(MODERN, model=replace(MODERN.model, residual=residual))
    assert losses(config, here) == pytest.approx(losses(replace(config, precision="fp32"), here), abs=5e-2)


@pytest.mark.parametrize("rung", ladder.RUNGS, ids=lambda rung: rung.pattern)
def test_every_rung_computes_the_same_training(rung: ladder.Rung, here: World) -> None:
    place = ladder.Place(here.device, "bf16")
    first = ladder.first_config(replace(MODEL, vocab_size=500), 4, place)
    half = replace(first, precision="bf16") if rung.obstacle(first, place) else first
    if reason := rung.obstacle(half, place):
        pytest.skip(reason)
    assert losses(rung.change(half, place), here) == pytest.approx(losses(first, here), abs=2e-2)


@pytest.mark.parametrize("config", [CONFIG, MODERN], ids=["gpt2", "modern"])
def test_a_captured_step_writes_what_an_eager_one_does(config: Config, here: World) -> None:
    model = build(config.model, 500).init_weights(1).to(here.device).eval()
    prompts = [torch.arange(5, device=here.device), torch.arange(9, device=here.device)]
    written = []
    for static in (True, False):
        sampling = decode.Sampling(temperature=0)
        decoder = decode.Decoder(model, prompts, 40, sampling, seed=1, n_ids=500, static=static)
        with torch.no_grad():
            written.append([decoder.step().tolist() for _ in range(40)])
        assert bool(decoder.graph) == static
    assert written[0] == written[1]


@pytest.mark.parametrize("config", [CONFIG, MODERN], ids=["gpt2", "modern"])
def test_validation_is_that_of_the_cpu(config: Config, here: World) -> None:
    model = build(config.model, 500).init_weights(1)
    lengths = np.ones(512, dtype=np.int64)
    cpu = World(torch.device("cpu"))
    expected = dict(validation(model, TOKENS, lengths, 128, None, cpu, nullcontext))
    found = dict(validation(model.to(here.device), TOKENS, lengths, 128, None, here, nullcontext))
    assert found == pytest.approx(expected, rel=1e-6)


def test_attention_is_the_chosen_kernels(here: World) -> None:
    """By the names in a profile."""
    with closing(engine_of(CONFIG, here)) as engine, torch.profiler.profile() as profiler:
        engine.update(1)
        torch.cuda.synchronize()
    names = [event.key for event in profiler.key_averages() if profiling.kind_of(event.key) == "attention"]
    sign = {"cudnn": "cudnn", "flash": "flash", "efficient": "fmha", "FA3": "flash", "FA4": "flash"}
    assert engine.kernel is not None
    assert any(sign[engine.kernel] in name.lower() for name in names), (engine.kernel, names)


@torch.no_grad()
def test_texts_that_come_and_go_are_those_written_alone(here: World) -> None:
    """On the device too, where their noise is drawn; the second joins while the first is being written."""
    model = build(MODEL, 500).init_weights(1).to(here.device).eval()
    sampling, slots = decode.Sampling(1.0, top_k=20), Slots(model, 2, 500)
    texts = [Text([1, 2, 3], sampling, 5), Text([7] * 40, sampling, 6)]
    written: list[list[int]] = [[], []]
    for step in range(150):  # beyond the end of the first one's positions
        if step in (0, 20):
            written[len(slots.texts)] += [slots.join([texts[len(slots.texts)]])[0].token]
        for tokens, drawn in zip(written, slots.step(), strict=False):
            tokens.append(drawn.token)
    for prompt, seed, tokens in (([1, 2, 3], 5, written[0]), ([7] * 40, 6, written[1])):
        alone = generate(model, [torch.tensor(prompt, device=here.device)], len(tokens), sampling, seed, 500)
        assert tokens == [token for [token] in alone]


@pytest.mark.parametrize("recipe", [[], MODERN_OPTIONS], ids=["gpt2", "modern"])
def test_a_deterministic_run_that_was_killed_ends_as_one_that_was_not(
    recipe: list[str], data_folder: Path, tmp_path: Path
) -> None:
    """In processes of their own, since torch is told once to be deterministic."""
    sizes = "--model.n-embd 128 --model.block-size 64 --batch-tokens 512 --micro-batch 4".split()
    often = "--steps 300 --save-every 20 --eval-every 100".split()
    line = [sys.executable, "-m", "overnight", "train", "shakespeare-cpu", "--data", str(data_folder)]
    line += [*TINY, *recipe, *sizes, *often, "--device", "cuda", "--deterministic", "--run"]
    process = subprocess.Popen([*line, str(tmp_path / "cut")])
    wait_for_step(tmp_path / "cut", 120, process)
    process.kill()
    assert process.wait() == -9
    for run in ("cut", "whole"):
        assert subprocess.run([*line, str(tmp_path / run)]).returncode == 0
    assert_same_end(tmp_path / "cut", tmp_path / "whole")
