"""A training run of 16 updates that saves and evaluates often; `poison` makes the loss of some not finite."""

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from overnight.data.batches import Batches
from overnight.data.manifest import Data
from overnight.models.gpt2 import GPT

SMALL = "--device cpu --model.n-layer 1 --model.n-head 2 --model.n-embd 16 --model.block-size 16 ".split()
SMALL += "--batch-tokens 64 --optim.warmup-steps 2 --sample.length 10 --val-tokens 500".split()
SMALL += "--eval-every 6 --sample-every 6 --save-every 4 --train.max-bad-steps 3".split()
BAD = 6, 7, 8  # the updates whose windows are poisoned


def options(data: Path, run: Path, *more: object) -> list[str]:
    given = ["--data", str(data), "--run", str(run), *SMALL, "--steps", "16", *map(str, more)]
    return ["train", "shakespeare-cpu", *given]


def rows_of(data: Path, steps: tuple[int, ...]) -> set[bytes]:
    """The windows of some updates (1 is the first) as bytes."""
    batches = Batches(Data(data).split("train"), 16, lambda step: 4, seed=1337)
    return {row.tobytes() for step in steps for row in batches.at(step - 1, 0, 4)[0]}


@pytest.fixture
def poison(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`poison(6, 7)`: the windows of these updates, whenever they come, have a loss that is no number."""
    intact = GPT.forward

    def arrange(*steps: int, value: float = float("nan")) -> None:
        bad = rows_of(data_folder, steps)

        def forward(self: GPT, idx: Tensor, targets: Tensor, *head: Tensor) -> Tensor:
            loss = intact(self, idx, targets, *head)
            return loss * value if any(row.numpy().tobytes() in bad for row in idx) else loss

        monkeypatch.setattr(GPT, "forward", forward)

    return arrange
