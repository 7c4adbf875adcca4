"""The recipes are those of the lecture, llm.c, GPT-3's paper and nanoGPT, number by number."""

import dataclasses

import pytest
import torch

from overnight import plan
from overnight.config import Config, LoaderConfig, ModelConfig, OptimConfig
from overnight.models.gpt2 import GPT
from overnight.presets import PRESETS, usual_lr

# layers, heads, width, context; peak and final learning rate, warm-up; steps, tokens a step;
# millions of parameters with GPT-2's 50,257 tokens
RECIPES = {
    "gpt2-124m": ((12, 12, 768, 1024), (6e-4, 6e-5, 715), (19_073, 524_288), 124.4),
    "gpt2-350m": ((24, 16, 1024, 1024), (3e-4, 0.0, 700), (60_000, 524_288), 354.8),
    "gpt2-774m": ((36, 20, 1280, 1024), (2.5e-4, 0.0, 700), (286_102, 524_288), 774.0),
    "gpt2-1558m": ((48, 25, 1600, 1024), (6e-4, 6e-5, 700), (32_000, 1_048_576), 1557.6),
    "gpt3-125m": ((12, 12, 768, 2048), (6e-4, 6e-5, 700), (572_204, 524_288), 125.2),
    "gpt3-350m": ((24, 16, 1024, 2048), (3e-4, 3e-5, 700), (572_204, 524_288), 355.9),
    "gpt3-760m": ((24, 16, 1536, 2048), (2.5e-4, 2.5e-5, 700), (572_204, 524_288), 760.3),
}
MODERN = {"modern-124m", "modern-quickstart", "modern-shakespeare-cpu"}
OTHERS = {"quickstart", "gpt2-quickstart", "shakespeare", "shakespeare-cpu", "finetune-shakespeare"}


def test_no_preset_is_missing() -> None:
    assert set(PRESETS) == OTHERS | MODERN | set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_the_gpts_are_as_published(name: str) -> None:
    (n_layer, n_head, n_embd, block_size), (lr, min_lr, warmup), (steps, batch_tokens), _ = RECIPES[name]
    config = PRESETS[name]()
    assert config.model == ModelConfig(
        n_layer, n_head, n_embd, block_size, "auto", bias=True, activation="gelu_tanh", dropout=0.0
    )
    assert config.optim == OptimConfig(
        lr, pytest.approx(min_lr), warmup, "cosine", 0.1, (0.9, 0.95), 1e-8, grad_clip=1.0, ramp_tokens=0
    )
    assert (config.steps, config.batch_tokens) == (steps, batch_tokens)
    assert (config.seed, config.eval_every, config.init_from) == (1337, 250, "")


@pytest.mark.parametrize("name", RECIPES)
def test_parameters_are_counted_as_the_model_has_them(name: str) -> None:
    model = dataclasses.replace(PRESETS[name]().model, vocab_size=50_257)
    with torch.device("meta"):
        real = sum(p.numel() for p in GPT(model, 50_257).parameters())
    assert plan.parameters(model) == real
    assert round(real / 1e6, 1) == RECIPES[name][3]


@pytest.mark.parametrize(
    ("name", "sizes", "batch_tokens", "steps", "dropout"),
    [
        ("shakespeare", (6, 6, 384, 256), 64 * 256, 5000, 0.2),
        ("shakespeare-cpu", (4, 4, 128, 64), 12 * 64, 2000, 0.0),
    ],
)
def test_shakespeare_is_nanogpts(
    name: str, sizes: tuple[int, ...], batch_tokens: int, steps: int, dropout: float
) -> None:
    config = PRESETS[name]()
    assert config.model == ModelConfig(*sizes, "auto", bias=False, activation="gelu", dropout=dropout)
    lr = 1.5e-3 if name == "shakespeare-cpu" else 1e-3  # why: in the preset's docstring
    assert config.optim == OptimConfig(lr, 1e-4, 100, "cosine", 0.1, (0.9, 0.99), 1e-8, 1.0, 0, True)
    assert (config.steps, config.batch_tokens, config.data) == (steps, batch_tokens, "data/shakespeare")


def test_the_modern_recipe_is_the_speedruns() -> None:
    """modded-nanogpt's track 3; data, batches and evaluations as GPT-2's, so that runs can be compared."""
    config, gpt2 = PRESETS["modern-124m"](), PRESETS["gpt2-124m"]()
    assert config.model.sized() == ModelConfig(
        12, 6, 768, 1024, "auto", bias=False, activation="relu2", architecture="modern"
    )
    assert config.optim == OptimConfig(
        0.025, 0.0, 0, "trapezoid", 0.05, (0.8, 0.95), 1e-10, 0.0, algorithm="muon", decay=0.7,
        embedding_lr=0.7, head_lr=0.004, scalar_lr=0.015, momentum=0.95, momentum_steps=300,
    )  # fmt: skip
    alike = ("data", "batch_tokens", "seed", "eval_every", "val_tokens", "loader", "hellaswag_every")
    assert all(getattr(config, name) == getattr(gpt2, name) for name in alike)
    assert config.model.block_size == gpt2.model.block_size
    assert config.steps * config.batch_tokens == 1_703_936_000


def test_the_quickstart_is_the_better_recipe_by_its_own_name() -> None:
    config, modern, gpt2 = (
        PRESETS[name]() for name in ("quickstart", "modern-quickstart", "gpt2-quickstart")
    )
    assert config == dataclasses.replace(modern, run="quickstart")
    assert (modern.data, modern.model.block_size) == (gpt2.data, gpt2.model.block_size) == ("data/stdlib", 64)


def test_finetuning_is_nanogpts() -> None:
    config = PRESETS["finetune-shakespeare"]()
    assert (config.init_from, config.steps, config.batch_tokens) == ("hf:gpt2", 20, 32_768)
    assert (config.optim.lr, config.optim.schedule, config.optim.warmup_steps) == (3e-5, "constant", 0)
    assert config.model == ModelConfig()


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_how_to_run_it(name: str) -> None:
    document = PRESETS[name].__doc__ or ""
    assert f"overnight train {name}" in document
    assert "Cost:" in document or "Result:" in document
    assert isinstance(PRESETS[name](), Config)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_share_what_they_do_not_say(name: str) -> None:
    config = PRESETS[name]()
    assert (config.run, config.seed) == (name, 1337)
    assert config.loader == LoaderConfig("shuffled")
    assert {config.device, config.precision, config.compile, config.micro_batch} == {"auto"}


@pytest.mark.parametrize(
    ("preset", "lr", "wanted"),
    [
        ("gpt2-124m", 1e30, 6e-4), ("gpt2-124m", 6e-4, 3e-4), ("gpt2-124m", 1e-3, 5e-4),
        ("modern-124m", 100.0, 0.025), ("mine", 1e30, 6e-4), ("", 1e-5, 5e-6),
    ],
)  # fmt: skip
def test_a_lower_rate_is_half_or_the_presets_own(preset: str, lr: float, wanted: float) -> None:
    assert usual_lr(preset, lr) == wanted
