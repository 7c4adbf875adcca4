"""What each ingredient of the modern recipe is worth: it is switched off, or put back to what GPT-2's recipe
has, one at a time, on the task of `modern-shakespeare-cpu`, over some seeds.

    python benchmarks/recipes.py TEXT [--seeds 4] [--only NAME ...]     TEXT: tinyshakespeare.txt

The model file has no switches. What is switched off here is replaced from outside, in a process that does
nothing else. Results are losses, so that it does not matter what else the machine does meanwhile.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common import overnight, progress, save
from overnight import muon, optim, step
from overnight.config import Config
from overnight.data.batches import Batches
from overnight.data.manifest import Data
from overnight.evals.loss import validation
from overnight.models import modern
from overnight.models.modern import ModernGPT
from overnight.models.pointwise import rms_norm
from overnight.presets import PRESETS
from overnight.world import World, connect
from tables import load

JORDAN = 5 * [(3.4445, -4.7750, 2.0315)]
CUBIC = 12 * [(2.0, -1.5, 0.5)]


def as_it_is(*_: Any) -> None:
    """Nothing is changed."""


@dataclass(frozen=True)
class Variant:
    """The recipe with something changed: in the config, in the code, in the weights at the start."""

    config: Callable[[Config], Config] = lambda config: config
    code: Callable[[], None] = as_it_is
    weights: Callable[[ModernGPT], None] = as_it_is


def with_optim(**changes: Any) -> Callable[[Config], Config]:
    return lambda config: replace(config, optim=replace(config.optim, **changes))


def set_in(place: Any, **names: Any) -> None:
    for name, value in names.items():
        setattr(place, name, value)


# The network


def queries_and_keys_as_they_are() -> None:
    """They alone have four dimensions."""
    set_in(modern, rms_norm=lambda x: x if x.dim() == 4 else rms_norm(x), SCALE=128**-0.5)


def embedding_as_it_is() -> None:
    """The norm of what comes out of the table is left out; the others are not."""
    looked_up: list[Tensor] = []
    forward = modern.Embedding.forward
    set_in(modern.Embedding, forward=lambda self, idx: looked_up.append(forward(self, idx)) or looked_up[-1])

    def others(x: Tensor) -> Tensor:
        return looked_up.pop() if looked_up and x is looked_up[-1] else rms_norm(x)

    set_in(modern, rms_norm=others)


def layer_norm() -> None:
    set_in(modern, rms_norm=lambda x: F.layer_norm(x, x.shape[-1:]) if x.dim() == 3 else rms_norm(x))


def learnt_positions(model: ModernGPT) -> None:
    """Added to the tokens, from N(0, 1) too, in the place of rotations."""
    model.wte.wpe = nn.Parameter(torch.randn(model.config.block_size, model.config.n_embd))
    forward = modern.Embedding.forward
    set_in(modern.Embedding, forward=lambda self, idx: forward(self, idx) + self.wpe[: idx.size(1)])


def biases() -> None:
    """In all linear layers but the head."""
    made = modern.Linear

    def linear(inputs: int, outputs: int, bias: bool) -> nn.Module:
        return made(inputs, outputs, bias=outputs % inputs == 0 or inputs % outputs == 0)

    set_in(modern, Linear=linear)


@torch.no_grad()
def projections_drawn(model: ModernGPT) -> None:
    """As GPT-2's are."""
    for name, parameter in model.named_parameters():
        if name.endswith("c_proj.weight"):
            parameter.normal_(0.0, 0.02 / (2 * model.config.n_layer) ** 0.5)


@torch.no_grad()
def head_drawn(model: ModernGPT) -> None:
    model.lm_head.weight.normal_(0.0, 0.02)


@torch.no_grad()
def head_tied(model: ModernGPT) -> None:
    """As GPT-2's is; the table begins as small as a head has to, which its norm makes good."""
    model.lm_head.weight = model.wte.weight
    model.wte.weight.normal_(0.0, 0.02)


def no_skip(model: ModernGPT) -> None:
    model.skips.requires_grad_(False)


# The optimizer


def adamw_for_matrices(lr: float) -> None:
    """All else keeps its AdamW and its rates."""

    def optimizer(model: nn.Module, config: Any, world: World) -> torch.optim.Optimizer:
        made = optim.muon(model, config, world)
        hidden = [p for group in made.matrices for p in group["params"]]
        decay = config.weight_decay * config.lr / lr  # as much of it in a step
        group = {"params": hidden, "weight_decay": decay, "ratio": lr / config.lr}
        made.adamw.add_param_group(group | {"betas": (0.9, 0.95), "eps": 1e-8})
        return made.adamw

    set_in(step, optimizer=optimizer)


def plain_momentum() -> None:
    """Heavy ball in place of Nesterov's."""
    direction = muon.Muon.direction

    def buffer(self: muon.Muon, p: Any, momentum: float, *rest: Any) -> Tensor:
        direction(self, p, momentum, *rest)
        return self.state[p]["momentum_buffer"]

    set_in(muon.Muon, direction=buffer)


VARIANTS: dict[str, Variant] = {
    "the recipe": Variant(),
    "AdamW for the matrices, 0.002": Variant(code=partial(adamw_for_matrices, 2e-3)),
    "AdamW for the matrices, 0.004": Variant(code=partial(adamw_for_matrices, 4e-3)),
    "AdamW for the matrices, 0.008": Variant(code=partial(adamw_for_matrices, 8e-3)),
    "AdamW for the matrices, 0.016": Variant(code=partial(adamw_for_matrices, 1.6e-2)),
    "Newton-Schulz, 5 x (3.4445, -4.775, 2.0315)": Variant(code=partial(set_in, muon, POLYNOMIALS=JORDAN)),
    "Newton-Schulz, 12 x (2, -1.5, 0.5)": Variant(code=partial(set_in, muon, POLYNOMIALS=CUBIC)),
    "momentum not Nesterov's": Variant(code=plain_momentum),
    "momentum warmed up from 0.85 to 0.95": Variant(with_optim(momentum=0.95, momentum_steps=300)),
    "no weight decay": Variant(with_optim(weight_decay=0.0)),
    "cosine, 5% warm-up": Variant(
        lambda config: with_optim(schedule="cosine", warmup_steps=config.steps // 20)(config)
    ),
    "linear from the start": Variant(with_optim(schedule="linear")),
    "learnt positions, not rotary": Variant(
        code=partial(set_in, modern, rotate=lambda x, rotation: x), weights=learnt_positions
    ),
    "queries and keys not normalised": Variant(code=queries_and_keys_as_they_are),
    "attention scaled by 1 / sqrt(D)": Variant(code=partial(set_in, modern, SCALE=128**-0.5)),
    "GELU, not ReLU squared": Variant(
        code=partial(set_in, modern, relu_squared=partial(F.gelu, approximate="tanh"))
    ),
    "LayerNorm, not root mean square": Variant(code=layer_norm),
    "no norm on the embedding": Variant(code=embedding_as_it_is),
    "biases": Variant(code=biases),
    "output projections not 0 at first": Variant(weights=projections_drawn),
    "head not 0 at first": Variant(weights=head_drawn),
    "head tied to the embedding": Variant(
        lambda config: with_optim(embedding_lr=config.optim.head_lr)(config), weights=head_tied
    ),
    "logits not bounded": Variant(code=partial(set_in, modern, SOFTCAP=0.0)),
    "no skip from the embedding": Variant(weights=no_skip),
}


def loss_of(name: str, seed: int, data_folder: Path) -> float:
    """Validation loss over the whole split at the end of a run."""
    variant, data = VARIANTS[name], Data(data_folder)
    ids = data.tokenizer.vocab_size
    config = PRESETS["modern-shakespeare-cpu"]()
    model_config = replace(config.model.sized(), vocab_size=ids)
    rows = config.batch_tokens // config.model.block_size
    config = replace(
        config, seed=seed, device="cpu", precision="fp32", compile="off", model=model_config, micro_batch=rows
    )
    config = variant.config(config)
    torch.manual_seed(seed)  # what a variant draws
    variant.code()
    with connect("cpu") as world:
        model = ModernGPT(config.model, ids).init_weights(seed)
        variant.weights(model)
        batches = Batches(data.split("train"), config.model.block_size, config.sequences, seed)
        engine = step.Engine(model, config, batches, world, progress)
        for number in range(1, config.steps + 1):
            engine.update(number)
        engine.close()
        losses = validation(
            model, data.split("val"), data.tokenizer.byte_lengths, config.model.block_size, None, world,
            engine.autocast,
        )  # fmt: skip
        return dict(losses)["loss"]


def measured(names: list[str], seeds: int, data: Path) -> Iterator[tuple[str, list[float]]]:
    """Every variant's losses, two processes of one thread at a time, each process for one run."""
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes to come
    with ProcessPoolExecutor(2, get_context("spawn"), max_tasks_per_child=1) as pool:
        runs = {
            name: [pool.submit(loss_of, name, seed, data) for seed in range(1, seeds + 1)] for name in names
        }
        for name, found in runs.items():
            losses = [round(one.result(), 4) for one in found]
            progress(f"{name}: {statistics.mean(losses):.4f}  {losses}")
            yield name, losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("text")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--only", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "data"
        overnight("prepare", f"text:{options.text}", "--tokenizer", "char", "--out", data)
        found = dict(measured(options.only, options.seeds, data))
    figures = {"steps": PRESETS["modern-shakespeare-cpu"]().steps, "seeds": options.seeds}
    if len(found) < len(VARIANTS):  # some of them anew, or for the first time: with the others of this kind
        before = load("recipes")["figures"]
        assert {name: before[name] for name in figures} == figures, "the others are of other runs"
        found = before["losses"] | found
    save(
        "recipes", figures | {"losses": {name: found[name] for name in VARIANTS if name in found}}, quiet=True
    )


if __name__ == "__main__":
    main()
