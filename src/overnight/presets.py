"""The recipes by name: each a function that returns a Config, with its command, its cost and its result.

Costs are arithmetic, not measurements: tokens x FLOPs per token (6 N + 12 L C T; see plan.py). Results are
published ones of others, named, unless a file in benchmarks/results says that they are ours.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from overnight.config import MUON_LR, Config, ModelConfig, OptimConfig, SampleConfig

HALF_MILLION = 524_288  # tokens a step: 2**19, the power of two nearest to GPT-3's 0.5 M


def quickstart() -> Config:
    """A small GPT that writes Python, in under four minutes on two CPU cores: modern-quickstart, the better
    of the two recipes in that time (docs/recipes.md).

    overnight prepare stdlib && overnight train quickstart
    Result: benchmarks/results/quickstart.json.
    """
    return replace(modern_quickstart(), run="quickstart")


def gpt2_quickstart() -> Config:
    """The quickstart with GPT-2's recipe.

    overnight prepare stdlib && overnight train gpt2-quickstart
    Cost: 2.6 M tokens at 4.2 MFLOP, 11 TFLOP. How this recipe was found: docs/quickstart.md.
    """
    return Config(
        data="data/stdlib",
        run="gpt2-quickstart",
        steps=2500,
        batch_tokens=16 * 64,
        eval_every=500,
        val_tokens=32_768,
        save_every=500,
        sample_every=500,
        model=ModelConfig(n_layer=2, n_head=4, n_embd=128, block_size=64),
        optim=OptimConfig(lr=3e-3, min_lr=3e-5, warmup_steps=125, betas=(0.9, 0.99)),
        sample=SampleConfig(prompt="def main(", length=80),
    )


def shakespeare() -> Config:
    """nanoGPT's character-level Shakespeare for a GPU.

    overnight prepare shakespeare && overnight train shakespeare
    Cost: 82 M tokens at 72 MFLOP, 5.9 PFLOP. nanoGPT's README: best validation loss 1.4697 (an estimate from
    random batches) after 3 minutes on an A100; it overfits later, so the best checkpoint is kept.
    """
    return Config(
        data="data/shakespeare",
        run="shakespeare",
        steps=5000,
        batch_tokens=64 * 256,
        val_tokens=111_540,
        sample_every=1000,
        model=ModelConfig(
            n_layer=6, n_head=6, n_embd=384, block_size=256, bias=False, activation="gelu", dropout=0.2
        ),
        optim=OptimConfig(lr=1e-3, min_lr=1e-4, warmup_steps=100, betas=(0.9, 0.99)),
        sample=SampleConfig(prompt="\n", length=300),
    )


def shakespeare_cpu() -> Config:
    """nanoGPT's character-level Shakespeare for a CPU.

    overnight prepare shakespeare && overnight train shakespeare-cpu
    Cost: 1.5 M tokens at 5.2 MFLOP, 8.0 TFLOP; two minutes on two cores. nanoGPT: 1.88 by its own estimate,
    1.898 on the whole validation split. Its learning rate of 1e-3 gave 1.900 to 1.922 here (six seeds), so
    the peak is 1.5e-3; all else is nanoGPT's.
    """
    return Config(
        data="data/shakespeare",
        run="shakespeare-cpu",
        steps=2000,
        batch_tokens=12 * 64,
        val_tokens=30_720,
        save_every=500,
        sample_every=1000,
        model=ModelConfig(n_layer=4, n_head=4, n_embd=128, block_size=64, bias=False, activation="gelu"),
        optim=OptimConfig(lr=1.5e-3, min_lr=1e-4, warmup_steps=100, betas=(0.9, 0.99)),
        sample=SampleConfig(prompt="\n", length=300),
    )


def finetune_shakespeare() -> Config:
    """nanoGPT's fine-tuning of GPT-2 on Shakespeare (GPT-2's tokens).

    overnight prepare text:PATH --out data/shakespeare-gpt2 && overnight train finetune-shakespeare
    Cost: 0.66 M tokens at 855 MFLOP, 0.56 PFLOP. Starts from the checkpoint that --init-from names.
    """
    return Config(
        data="data/shakespeare-gpt2",
        run="finetune-shakespeare",
        steps=20,
        batch_tokens=32_768,
        eval_every=5,
        save_every=0,
        sample_every=5,
        init_from="hf:gpt2",
        model=ModelConfig(),
        optim=OptimConfig(lr=3e-5, schedule="constant", warmup_steps=0),
        sample=SampleConfig(prompt="\n", length=200),
    )


def gpt2_124m() -> Config:
    """The lecture's run: GPT-2 (124M) on 10 B tokens of FineWeb-Edu, 19,073 steps.

    overnight prepare fineweb-edu && overnight train gpt2-124m --processes 8
    Cost: 10.0 B tokens at 855 MFLOP, 8.6 EFLOP: 13 hours of one A100 at llm.c's 218 k tokens/s.
    Result to expect: validation loss 3.03 to 3.09, HellaSwag 0.300 to 0.306 (honest third-party runs of the
    lecture); OpenAI's GPT-2 124M has 3.29 and 0.2945 on the same files.
    """
    return Config(
        data="data/fineweb-edu",
        run="gpt2-124m",
        steps=19_073,
        batch_tokens=HALF_MILLION,
        hellaswag_every="auto",
        model=ModelConfig(),
        optim=OptimConfig(),
        sample=SampleConfig(prompt="Hello, I'm a language model,", count=4, length=32),
    )


def gpt2_350m() -> Config:
    """GPT-2 (350M), as llm.c's script runs it: 31.5 B tokens.

    overnight train gpt2-350m --processes 8
    Cost: 31.5 B tokens at 2.4 GFLOP, 76 EFLOP.
    """
    return larger("gpt2-350m", ModelConfig(24, 16, 1024), steps=60_000, lr=3e-4, min_lr=0.0)


def gpt2_774m() -> Config:
    """GPT-2 (774M), as llm.c's script runs it: 150 B tokens.

    overnight train gpt2-774m --processes 8
    Cost: 150 B tokens at 5.2 GFLOP, 780 EFLOP.
    """
    return larger("gpt2-774m", ModelConfig(36, 20, 1280), steps=286_102, lr=2.5e-4, min_lr=0.0)


def gpt2_1558m() -> Config:
    """GPT-2 (1558M), as llm.c's script runs it: 33.6 B tokens.

    overnight train gpt2-1558m --processes 8
    Cost: 33.6 B tokens at 10.3 GFLOP, 345 EFLOP.
    """
    config = larger("gpt2-1558m", ModelConfig(48, 25, 1600), steps=32_000, lr=6e-4, min_lr=6e-5)
    return replace(config, batch_tokens=2 * HALF_MILLION)


def gpt3_125m() -> Config:
    """GPT-3 Small (125M) on 300 B tokens, dense attention in place of the paper's alternating sparse one.

    overnight train gpt3-125m --processes 8
    Cost: 300 B tokens at 0.97 GFLOP, 290 EFLOP. GPT-3's batch ramp: --optim.ramp-tokens 4_000_000_000.
    """
    return larger("gpt3-125m", ModelConfig(12, 12, 768, 2048), steps=572_204, lr=6e-4, min_lr=6e-5)


def gpt3_350m() -> Config:
    """GPT-3 Medium (350M) on 300 B tokens, dense attention.

    overnight train gpt3-350m --processes 8
    Cost: 300 B tokens at 2.7 GFLOP, 819 EFLOP.
    """
    return larger("gpt3-350m", ModelConfig(24, 16, 1024, 2048), steps=572_204, lr=3e-4, min_lr=3e-5)


def gpt3_760m() -> Config:
    """GPT-3 Large (760M) on 300 B tokens, dense attention.

    overnight train gpt3-760m --processes 8
    Cost: 300 B tokens at 5.4 GFLOP, 1.6 ZFLOP.
    """
    return larger("gpt3-760m", ModelConfig(24, 16, 1536, 2048), steps=572_204, lr=2.5e-4, min_lr=2.5e-5)


def modern(depth: int) -> ModelConfig:
    """models/modern.py, sized by its depth: 64 channels a layer, heads of 128."""
    return ModelConfig(depth, n_head=0, n_embd=0, architecture="modern", bias=False, activation="relu2")


def with_muon(**changes: Any) -> OptimConfig:
    """Muon, level for 30% of the steps and down to 0 over 70%, as the speedrun has it; `changes` to that."""
    recipe = OptimConfig(
        algorithm="muon", lr=MUON_LR, min_lr=0.0, warmup_steps=0, schedule="trapezoid", weight_decay=0.05,
        betas=(0.8, 0.95), eps=1e-10, grad_clip=0.0,
    )  # fmt: skip
    return replace(recipe, **changes)


def small_modern(gpt2: Config, **changes: Any) -> Config:
    """A small preset of GPT-2's with the modern recipe, tuned for 2 layers of 128 (docs/recipes.md)."""
    model = replace(modern(depth=2), n_head=4, block_size=gpt2.model.block_size)
    optim = with_muon(lr=0.05, head_lr=0.01, embedding_lr=0.3, momentum=0.9, momentum_steps=0)
    return replace(gpt2, model=model, optim=optim, **changes)


def modern_quickstart() -> Config:
    """The quickstart with the modern recipe.

    overnight prepare stdlib && overnight train modern-quickstart
    Cost: 2.5 M tokens at 4.1 MFLOP, 10 TFLOP. How this recipe was found: docs/recipes.md.
    """
    return small_modern(
        gpt2_quickstart(),
        run="modern-quickstart",
        steps=600,
        batch_tokens=64 * 64,
        eval_every=150,
        save_every=150,
        sample_every=150,
    )


def modern_shakespeare_cpu() -> Config:
    """Character-level Shakespeare for a CPU, with the modern recipe.

    overnight prepare shakespeare && overnight train modern-shakespeare-cpu
    Cost: 0.25 M tokens at 2.7 MFLOP, 0.7 TFLOP. What each of its ingredients is worth: docs/recipes.md.
    """
    return small_modern(
        shakespeare_cpu(),
        run="modern-shakespeare-cpu",
        steps=160,
        batch_tokens=24 * 64,
        eval_every=80,
    )


def modern_124m() -> Config:
    """The modern recipe at GPT-2 (124M)'s depth and width, on a sixth of its tokens: 1.7 B of FineWeb-Edu.

    overnight prepare fineweb-edu && overnight train modern-124m --processes 8
    Cost: 1.7 B tokens at 855 MFLOP, 1.5 EFLOP: 51 minutes of steps on one H200, at the 560 k tokens/s
    measured there.
    modded-nanogpt's track 3, whose recipe this is, has 3.2787 on FineWeb (not Edu) after as many tokens,
    llm.c's GPT-2 3.2722 after 10.26 B. Other sizes by one dial: --model.n-layer 24 is twice as wide.
    """
    return replace(gpt2_124m(), run="modern-124m", steps=3250, model=modern(depth=12), optim=with_muon())


def larger(name: str, model: ModelConfig, steps: int, lr: float, min_lr: float) -> Config:
    """What the runs beyond 124M share: the lecture's recipe with llm.c's warm-up and rarer checkpoints."""
    return replace(
        gpt2_124m(),
        run=name,
        steps=steps,
        save_every=1000,
        model=model,
        optim=OptimConfig(lr=lr, min_lr=min_lr, warmup_steps=700),
    )


PRESETS: dict[str, Callable[[], Config]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        quickstart,
        gpt2_quickstart,
        modern_quickstart,
        shakespeare,
        shakespeare_cpu,
        modern_shakespeare_cpu,
        finetune_shakespeare,
        gpt2_124m,
        gpt2_350m,
        gpt2_774m,
        gpt2_1558m,
        gpt3_125m,
        gpt3_350m,
        gpt3_760m,
        modern_124m,
    )
}


def usual_lr(preset: str, lr: float) -> float:
    """A learning rate to try where `lr` was too high: half of it, or the preset's own if that is lower."""
    return min(lr / 2, PRESETS[preset]().optim.lr if preset in PRESETS else OptimConfig.lr)
