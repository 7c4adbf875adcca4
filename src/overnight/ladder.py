"""The lecture's speed ladder: from the naive loop to the fast one, a change at a time, measured here.

A rung is a change of the config that `train` takes. Each is tried on top of those that paid; one that does
not is named, measured and left out of what follows.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from overnight import hardware, machine, plan, world
from overnight.checks import fields_of
from overnight.config import Config, ModelConfig, OptimConfig, TrainConfig
from overnight.errors import Failure
from overnight.models.linear import has_onednn
from overnight.stopwatch import Measured, measure

TIE = 1.03  # times as fast or slow: machines are not steadier


@dataclass(frozen=True)
class Place:
    """What a rung's change may depend on."""

    device: torch.device
    half: Literal["bf16", "fp16"]
    """The type of 16 bits that this device multiplies fast, or bf16 where there is none."""

    @property
    def kind(self) -> str:
        return self.device.type


def place_of(device: torch.device) -> Place:
    return Place(device, "fp16" if world.choose_precision("auto", device) == "fp16" else "bf16")


@dataclass(frozen=True)
class Rung:
    pattern: str
    """Its name, with fields of the config to be filled in."""
    change: Callable[[Config, Place], Config]
    lecture_ms: float | None = None
    """The lecture's figure: an A100, 16 x 1,024 tokens a step."""
    obstacle: Callable[[Config, Place], str] = lambda config, place: ""
    """Why a machine, or what stands so far, cannot have it; '' where nothing is known against it."""
    costs: bool = False
    """Whether it has to be clearly faster to be kept, because every start is slower with it; others are kept
    where they are not clearly slower."""


def in_model(**change: Any) -> Callable[[Config, Place], Config]:
    return lambda config, place: replace(config, model=replace(config.model, **change))


def in_train(**change: Any) -> Callable[[Config, Place], Config]:
    return lambda config, place: replace(config, train=replace(config.train, **change))


def padded(config: Config, place: Place) -> Config:
    assert isinstance(config.model.vocab_size, int)
    return in_model(vocab_size=hardware.padded(config.model.vocab_size))(config, place)


def no_tf32(config: Config, place: Place) -> str:
    if place.kind != "cuda":
        return "a mode of CUDA's matrix units"
    return (
        "" if torch.cuda.get_device_capability(place.device) >= (8, 0) else "came with Ampere, a later card"
    )


def no_half(config: Config, place: Place) -> str:
    if place.kind == "cpu" and not {"avx512_bf16", "amx_bf16"} & set(machine.cpu_field("flags").split()):
        return "this CPU has no bf16 in hardware"
    return ""


def no_compiler(config: Config, place: Place) -> str:
    cuda = place.kind == "cuda" and not world.triton_works(place.device)
    return "Triton is not installed, or this card too old for it" if cuda else ""


def only_in(*precisions: str, and_on: str = "") -> Callable[[Config, Place], str]:
    def obstacle(config: Config, place: Place) -> str:
        if and_on and place.kind != and_on:
            return f"a matter of {and_on}"
        return "" if config.precision in precisions else f"a matter of {' and '.join(precisions)}"

    return obstacle


def no_kernels(config: Config, place: Place) -> str:
    spelt_out = "a matter of flash attention" if config.model.attention == "manual" else ""
    return only_in("bf16", "fp16", and_on="cuda")(config, place) or spelt_out


def no_onednn(config: Config, place: Place) -> str:
    return only_in("fp32", and_on="cpu")(config, place) or (
        "" if has_onednn() else "this torch does not carry oneDNN"
    )


RUNGS = (
    Rung("fp32", lambda config, place: config, 1000),
    Rung("TF32", lambda config, place: replace(config, precision="tf32"), 333, no_tf32),
    Rung("{precision}", lambda config, place: replace(config, precision=place.half), 300, no_half),
    Rung("torch.compile", lambda config, place: replace(config, compile="on"), 130, no_compiler, True),
    Rung("flash attention", in_model(attention="flash"), 96),
    Rung("vocabulary {model.vocab_size:,}", padded, 93),
    Rung(
        "fused AdamW", lambda config, place: replace(config, optim=replace(config.optim, fused=True)), 90
    ),
    Rung("logits in parts", in_model(logits="parts")),
    Rung("bf16 residual stream", in_model(residual="low"), obstacle=only_in("bf16")),
    Rung("weights cast once", in_train(cast="step"), obstacle=only_in("bf16", "fp16")),
    Rung("fastest attention", in_train(attention_kernel="fastest"), obstacle=no_kernels),
    Rung("oneDNN's products", in_train(products="onednn"), obstacle=no_onednn),
)  # fmt: skip


@dataclass(frozen=True)
class Climbed:
    """What became of a rung."""

    name: str
    rung: Rung
    config: Config
    options: dict[str, Any]
    """The options of `train` that it changes, with what it gives them."""
    found: Measured | None
    reason: str = ""
    """Why it was not measured."""
    gain: float | None = None
    """How many times as fast as the newest rung that was kept before; None where there is none."""

    @property
    def kept(self) -> bool:
        """Whether what follows stands on it."""
        if self.found is None or not math.isfinite(self.found.loss):
            return False
        return self.gain is None or self.gain >= (TIE if self.rung.costs else 1 / TIE)

    def described(self, place: Place) -> dict[str, Any]:
        """For JSON."""
        found = self.found
        return {
            "name": self.name,
            "options": self.options,
            "kept": self.kept,
            "reason": self.reason or None,
            "ms": found and round(found.ms, 3),
            "gain": self.gain and round(self.gain, 3),
            "tokens_per_second": self.tokens_per_second and round(self.tokens_per_second, 1),
            "mfu": self.mfu(place),
            "peak_memory_bytes": found and found.peak_memory,
            "loss": found.loss if found and math.isfinite(found.loss) else None,
            "start_seconds": found and found.start_seconds,
            "step_ms": found and found.step_ms,
            "lecture_ms": self.rung.lecture_ms,
        }

    @property
    def tokens_per_second(self) -> float | None:
        return 1000 * self.config.batch_tokens / self.found.ms if self.found else None

    def mfu(self, place: Place) -> float | None:
        """Model FLOPs utilisation; None where the peak is not known."""
        peak = world.peak_flops(place.device, self.config.precision)
        rate = self.tokens_per_second
        return plan.flops_per_token(self.config.model) * rate / peak if peak and rate else None


def first_config(model: ModelConfig, micro_batch: int, place: Place) -> Config:
    """Where the ladder stands: everything as simple as it can be. One micro-batch a step, and no dropout,
    so that losses agree from rung to rung."""
    simple = replace(model, attention="manual", residual="fp32", logits="whole", dropout=0.0)
    return Config(
        data="", run="", steps=1_000_000, batch_tokens=micro_batch * model.block_size,
        micro_batch=micro_batch, device=place.device.type, precision="fp32", compile="off", model=simple,  # type: ignore[arg-type]
        optim=OptimConfig(lr=3e-4, schedule="constant", warmup_steps=0, fused=False),
        train=TrainConfig(cast="product", attention_kernel="default", products="mkl"),
    )  # fmt: skip


def climb(
    first: Config, n_tokens: int, place: Place, steps: int, seconds: float, say: Callable[[str], None]
) -> Iterator[Climbed]:
    """Each rung, measured on top of those before it that paid. n_tokens: the tokenizer's ids. steps, seconds:
    as `stopwatch.measure` takes them. say: told which rung is being measured."""
    below, ms = first, None
    for number, rung in enumerate(RUNGS):
        config = rung.change(below, place)
        name = rung.pattern.format(precision=config.precision, model=config.model)
        before, after = dict(fields_of(below)), dict(fields_of(config))
        options = {key: value for key, value in after.items() if value != before[key]}
        reason, found = rung.obstacle(below, place), None
        if number and not options:
            reason = reason or "so it is already"
        if not reason:
            say(f"rung {number + 1} of {len(RUNGS)}: {name}")
            try:
                found = measure(config, n_tokens, steps, seconds)
            except Failure as error:
                reason = str(error)
        gain = ms / found.ms if ms and found else None
        climbed = Climbed(name, rung, config, options, found, reason, gain)
        if climbed.kept:
            assert found
            below, ms = config, found.ms
        yield climbed
