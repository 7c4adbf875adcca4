"""A config derives the width of a model from its depth, and the size of each batch from the ramp."""

import pytest
from tests.small_config import build

from overnight.config import RAMP_START, ModelConfig


@pytest.mark.parametrize(
    ("depth", "width", "heads"), [(1, 128, 1), (2, 128, 1), (3, 256, 2), (12, 768, 6), (20, 1280, 10)]
)
def test_depth_is_a_models_one_dial(depth: int, width: int, heads: int) -> None:
    sized = ModelConfig(depth, n_head=0, n_embd=0).sized()
    assert (sized.n_layer, sized.n_embd, sized.n_head) == (depth, width, heads)
    assert sized.sized() == sized
    assert ModelConfig(10**320 + 1, n_embd=0).sized().n_embd == 64 * (10**320 + 2), "exact, whatever the size"
    assert ModelConfig(depth, n_head=0, n_embd=64).sized().n_head == 1
    assert ModelConfig(depth, n_head=3, n_embd=96).sized() == ModelConfig(depth, n_head=3, n_embd=96)


def test_without_a_ramp_every_step_is_as_large() -> None:
    config = build(batch_tokens=1024)
    assert {config.sequences(step) for step in (0, 1, 9, 10**6)} == {64}


def test_a_ramp_by_hand() -> None:
    """Four levels share the 12 units of 32,768 tokens: 3 steps of 1, 2 (1.5, rounded up) of 2, 1 of 3."""
    config = build(batch_tokens=4 * RAMP_START, **{"optim.ramp_tokens": 12 * RAMP_START})
    unit = RAMP_START // 16
    assert [config.sequences(step) / unit for step in range(8)] == [1, 1, 1, 2, 2, 3, 4, 4]


@pytest.mark.parametrize("levels", [1, 2, 16, 32])
@pytest.mark.parametrize("ramp_tokens", [1, 10**6, 4 * 10**8, 4 * 10**9])
def test_a_ramp_grows_from_its_start_to_the_batch(levels: int, ramp_tokens: int) -> None:
    batch_tokens = levels * RAMP_START
    config = build(batch_tokens=batch_tokens, **{"model.block_size": 1024, "optim.ramp_tokens": ramp_tokens})
    sizes, step = [], 0
    while not sizes or sizes[-1] < batch_tokens:
        sizes.append(config.sequences(step) * 1024)
        step += 1
    assert sizes[0] == RAMP_START
    assert sizes == sorted(sizes)
    assert {config.sequences(later) * 1024 for later in (step, step + 1, 10 * step)} == {batch_tokens}
    # Level k ends with the first step at or behind its share: at most k units late, and the last is not run.
    before = sum(sizes[:-1])
    exact = ramp_tokens * (levels - 1) / levels
    assert exact <= before <= exact + RAMP_START * levels * (levels - 1) / 2
