"""What a run is made of: frozen dataclasses, checked at construction.

The first lines of each field's docstring are its help on the command line. Names are the field's standard
terms; "auto" is resolved before step 0 and what it chose is written to config.json.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from overnight.checks import RAMP_START, above_limits, at_least, batch_problems, not_finite
from overnight.errors import near, refuse

Auto = Literal["auto"]
TRACKERS = ("tensorboard", "wandb")
LARGE_EMBEDDING_LR = 0.05  # GPT-2's embedding is N(0, 0.02), and AdamW moves each number by the rate
MUON_LR = 0.025  # usual with Muon (presets.with_muon)


@dataclass(frozen=True)
class ModelConfig:
    """The network (models/gpt2.py, models/modern.py)."""

    architecture: Literal["gpt2", "modern"] = field(default="gpt2", kw_only=True)
    """GPT-2's, or with what has been learnt since."""
    n_layer: int = 12
    """Blocks of attention and MLP."""
    n_head: int = 12
    """Attention heads of a block; divides n_embd. 0: heads of 128 (or one, of less)."""
    n_embd: int = 768
    """Width of the residual stream. 0: 64 a layer, rounded up to heads of 128."""
    block_size: int = 1024
    """Context: tokens of a window, the most that attention sees."""
    vocab_size: int | Auto = "auto"
    """Rows of the embedding; auto: the tokenizer's ids, padded to a multiple of 64 on CUDA."""
    bias: bool = True
    """Biases in linear layers and norms."""
    activation: Literal["gelu_tanh", "gelu", "relu2"] = "gelu_tanh"
    """GPT-2's tanh approximation, the exact GELU, or ReLU squared (modern)."""
    dropout: float = 0.0
    """Fraction of activations set to 0 in training."""
    attention: Literal["flash", "manual"] = "flash"
    """torch's fused kernel, or the formula spelt out."""
    residual: Literal["low", "fp32"] = "low"
    """Residual stream: as matrix products where those are in bf16; or in fp32 always."""
    logits: Literal["parts", "whole"] = "parts"
    """In training: of some positions at a time, or of the whole micro-batch."""

    def sized(self) -> "ModelConfig":
        """The same, with the width that goes with the depth in the place of 0, and so many heads of 128."""
        n_embd = self.n_embd or 128 * -(-self.n_layer // 2)
        return replace(self, n_embd=n_embd, n_head=self.n_head or max(1, n_embd // 128))

    def problems(self) -> Iterator[str]:
        yield from at_least(self, "model.", 1, "n_layer", "block_size", "vocab_size")
        yield from at_least(self, "model.", 0, "n_head", "n_embd")
        n_head, n_embd = self.sized().n_head, self.sized().n_embd
        if self.n_head == 0 and n_embd > 128 and n_embd % 128:
            yield f"model.n-head 0 is heads of 128, and model.n-embd {n_embd} no multiple: give a number."
        elif n_head > 0 and n_embd % n_head:
            fits = [str(n) for n in range(1, min(n_embd, 64) + 1) if n_embd % n == 0]
            yield (
                f"model.n-head {n_head} does not divide model.n-embd {n_embd}: give one of {', '.join(fits)}."
            )
        elif self.architecture == "modern" and min(n_head, n_embd) > 0 and n_embd // n_head % 2:
            yield f"heads of {n_embd // n_head} cannot be turned in pairs: give another model.n-head."
        if not 0 <= self.dropout < 1:
            yield f"model.dropout is {self.dropout}: give 0 or more, less than 1."
        yield from self.architecture_problems()

    def architecture_problems(self) -> Iterator[str]:
        """What this architecture does not have."""
        if self.architecture == "gpt2" and self.activation == "relu2":
            yield "model.activation relu2 is for model.architecture modern: give gelu_tanh or gelu."
        if self.architecture == "modern" and (self.bias or self.activation != "relu2" or self.dropout):
            yield (
                "model.architecture modern has no biases, no dropout, and ReLU squared: give --model.no-bias "
                "--model.dropout 0 --model.activation relu2."
            )


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its learning rate (optim.py, muon.py)."""

    algorithm: Literal["adamw", "muon"] = field(default="adamw", kw_only=True)
    """AdamW for everything; or Muon for the matrices inside, and AdamW for the rest."""
    lr: float = 6e-4
    """Peak learning rate; with muon, of its matrices."""
    min_lr: float = 6e-5
    """Where the schedule ends."""
    warmup_steps: int = 715
    """Steps of linear warm-up."""
    schedule: Literal["cosine", "linear", "trapezoid", "constant"] = "cosine"
    """After the warm-up: down to min_lr at the last step; level, then down (trapezoid); or level."""
    weight_decay: float = 0.1
    """On tensors of two or more dimensions; with muon, on its matrices."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay of the first and second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    grad_clip: float = 1.0
    """Largest norm of the gradient; 0 turns clipping off."""
    ramp_tokens: int = 0
    """Tokens over which the batch grows linearly from 32,768 tokens to batch-tokens (GPT-3); 0: no ramp."""
    fused: bool = True
    """AdamW in one kernel, or in torch's default form."""
    decay: float = 0.7
    """Share of all steps in which the trapezoid goes down."""
    embedding_lr: float = 0.7
    """With muon, the embeddings' peak."""
    head_lr: float = 0.004
    """With muon, the head's peak (where it is not the embedding)."""
    scalar_lr: float = 0.015
    """With muon, the peak of what is no matrix."""
    momentum: float = 0.95
    """Muon's, of Nesterov's kind."""
    momentum_steps: int = 300
    """Steps in which it rises to that from 0.85."""

    def usual(self) -> dict[str, float]:
        """Learning rates to name where one is far too high."""
        return {
            "optim.lr": MUON_LR if self.algorithm == "muon" else OptimConfig.lr,
            "optim.min_lr": OptimConfig.min_lr,
            "optim.embedding_lr": OptimConfig.embedding_lr,
            "optim.head_lr": OptimConfig.head_lr,
            "optim.scalar_lr": OptimConfig.scalar_lr,
        }

    def problems(self) -> Iterator[str]:
        yield from at_least(self, "optim.", 0, "min_lr", "warmup_steps", "weight_decay", "grad_clip")
        yield from at_least(self, "optim.", 0, "ramp_tokens", "momentum_steps")
        for name in ("lr", "eps", "embedding_lr", "head_lr", "scalar_lr"):
            if not getattr(self, name) > 0:
                yield f"optim.{name.replace('_', '-')} is {getattr(self, name)}: give a number above 0."
        if not 0 < self.decay <= 1:
            yield f"optim.decay is {self.decay}: give more than 0, at most 1."
        if not 0 <= self.momentum < 1:
            yield f"optim.momentum is {self.momentum}: give 0 or more, less than 1."
        if not all(0 <= beta < 1 for beta in self.betas):
            yield f"optim.betas are {self.betas[0]} and {self.betas[1]}: give two from 0 to less than 1."
        if self.schedule != "constant" and self.min_lr > self.lr > 0:
            yield f"optim.min-lr {self.min_lr} is above optim.lr {self.lr}: give at most that."


@dataclass(frozen=True)
class LoaderConfig:
    """The order of the training windows (data/batches.py)."""

    order: Literal["shuffled", "sequential"] = "shuffled"
    """A seeded permutation each epoch, or the lecture's order."""


@dataclass(frozen=True)
class TrainConfig:
    """The training loop (train.py)."""

    max_bad_steps: int = 10
    """Updates in a row without a finite loss and gradient after which a run goes back to its last good
    checkpoint and leaves out their windows; where that does not help, it gives up."""
    cast: Literal["step", "product"] = "step"
    """When weights become bf16 or fp16: once a step (one process), or in every product (autocast)."""
    attention_kernel: Literal["fastest", "default"] = "fastest"
    """On CUDA: the one that is fastest here, measured at the start; or torch's choice."""
    products: Literal["auto", "mkl", "onednn"] = "auto"
    """Who multiplies matrices on a CPU; auto: MKL on Intel's processors, oneDNN on others."""

    def problems(self) -> Iterator[str]:
        yield from at_least(self, "train.", 1, "max_bad_steps")


@dataclass(frozen=True)
class SampleConfig:
    """What is sampled during training (generate.py)."""

    prompt: str = ""
    """Text to go on from; empty: a new document."""
    count: int = 1
    """Samples each time."""
    length: int = 100
    """New tokens a sample, at most."""

    def problems(self) -> Iterator[str]:
        yield from at_least(self, "sample.", 1, "count", "length")


@dataclass(frozen=True)
class Config:
    """A whole run."""

    data: str
    """Folder of prepared data (`overnight prepare` makes it)."""
    run: str
    """Name (a folder in runs/) or path of the run."""
    steps: int
    """Updates to train for."""
    batch_tokens: int
    """Tokens of a step, over all ranks and micro-batches."""
    seed: int = 1337
    """Decides weights, order of the data, dropout and samples."""
    micro_batch: int | Auto = "auto"
    """Windows that a rank computes at once; auto: the most that fits."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto: cuda, then mps, then cpu."""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    """Of matrix products; auto: bf16 or fp16 where a GPU has it in hardware, else fp32."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile; auto: on for CUDA with Triton, measured on a CPU for one process's runs of hours."""
    deterministic: bool = False
    """On CUDA: only kernels that give the same bits each time."""
    processes: int = 1
    """Ranks on this machine, one a GPU (torchrun's own count where it started them)."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Ranks hold the whole model each, or shards of it, for models beyond one card's memory."""
    max_restarts: int = 0
    """How often ranks are started again by themselves when one has died."""
    eval_every: int = 250
    """Steps between validations; 0: only at the end."""
    val_tokens: int = 10_485_760
    """Tokens of a validation during training (the end uses all)."""
    save_every: int = 250
    """Steps between checkpoints; 0: only at the end."""
    keep: int = 2
    """Newest checkpoints to keep, besides the best."""
    sample_every: int = 250
    """Steps between samples; 0: only at the end."""
    hellaswag_every: int | Auto = 0
    """Steps between HellaSwags; 0: never; auto: as eval-every, where its file is or can be downloaded."""
    hellaswag_items: int = 0
    """Only the first so many items; 0: all."""
    hellaswag_file: str = ""
    """hellaswag_val.jsonl; empty: downloaded once into data/downloads."""
    max_minutes: float = 0.0
    """Save and stop after this long, with exit code 75; 0: no limit."""
    verify: bool = False
    """Check every shard's SHA-256 before step 0."""
    profile: bool = False
    """Look into a few of the first steps: a Chrome trace in the run, a table of where a step goes."""
    track: str = ""
    """Who is told the records too: tensorboard or wandb (offline), or both with a comma between."""
    init_from: str = ""
    """MODEL whose weights to start from; empty: random ones."""
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)

    def __post_init__(self) -> None:
        refuse(self.problems())

    @property
    def trackers(self) -> tuple[str, ...]:
        """The names in `track`."""
        return tuple(name for part in self.track.split(",") if (name := part.strip()))

    def problems(self) -> Iterator[str]:
        """Everything that is wrong with this config, each with its remedy."""
        yield from not_finite(self)
        yield from (too_large := list(above_limits(self, self.optim.usual())))
        yield from at_least(
            self, "", 1, "steps", "batch_tokens", "micro_batch", "processes", "val_tokens", "keep"
        )
        yield from at_least(self, "", 0, "seed", "eval_every", "save_every", "sample_every", "max_minutes")
        yield from at_least(self, "", 0, "hellaswag_every", "hellaswag_items", "max_restarts")
        for name in self.trackers:
            if name not in TRACKERS:
                hint = near(name, TRACKERS)
                yield f"track: there is no tracker '{name}'.{hint} Give {' or '.join(TRACKERS)}."
        yield from self.model.problems()
        yield from self.optim.problems()
        yield from self.train.problems()
        yield from self.sample.problems()
        muon_on_gpt2 = self.optim.algorithm == "muon" and self.model.architecture == "gpt2"
        if muon_on_gpt2 and self.optim.embedding_lr > LARGE_EMBEDDING_LR:
            yield (
                f"optim.embedding-lr {self.optim.embedding_lr} is for the modern network's embedding, "
                "50 times as large as GPT-2's: give about 6e-4, and optim.scalar-lr too."
            )
        if min(self.batch_tokens, self.model.block_size, self.processes) > 0 and not too_large:
            yield from batch_problems(self)

    def sequences(self, step: int) -> int:
        """Windows of step `step` (0 is the first): constant, or GPT-3's ramp in multiples of its start."""
        full = self.batch_tokens // self.model.block_size
        if not self.optim.ramp_tokens:
            return full
        # Linear in tokens seen, d(batch)/d(tokens) constant, makes the batch exponential in steps; each
        # multiple k of the start is held for its share of the ramp's tokens.
        start, levels = RAMP_START, self.batch_tokens // RAMP_START
        share, steps_before = self.optim.ramp_tokens / levels, 0
        for level in range(1, levels):
            steps_before += math.ceil(share / (level * start))
            if step < steps_before:
                return level * start // self.model.block_size
        return full
