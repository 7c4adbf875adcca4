"""Which checkpoint of a run is served while the run still trains."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.serve.running import serving, until

from overnight.serve import batcher
from overnight.serve.batcher import Batcher

CPU = torch.device("cpu")


def test_a_run_is_served_from_its_first_checkpoint_on_and_then_its_newer_ones(run: Path) -> None:
    aside = run.parent / "aside"
    shutil.move(run / "checkpoints", aside)
    (run / "checkpoints").mkdir()
    with serving(run) as server:
        assert "has no complete checkpoint yet" in server.said
        reply = server.complete(model="x", prompt="the", max_tokens=5)
        assert (reply.status, reply.json["error"]["code"]) == (503, "no_checkpoint")
        asked: dict[str, Any] = {"model": "x", "prompt": "the", "max_tokens": 1, "logprobs": 0}

        def probability() -> float:
            reply = server.complete(**asked, seed=1)
            return reply.json["choices"][0]["logprobs"]["token_logprobs"][0] if reply.status == 200 else 0.0

        shutil.copytree(aside / "step_00000002", run / "checkpoints" / "step_00000002")
        until("the first checkpoint", probability)
        first = probability()
        shutil.copytree(aside / "step_00000004", run / "checkpoints" / "step_00000004")
        until("the newer checkpoint", lambda: probability() != first)


@pytest.fixture
def look_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher, "LOOK_EVERY", 0.0)


@pytest.mark.usefixtures("look_at_once")
def test_a_run_that_was_trained_again_is_served_though_its_steps_are_the_same(
    run: Path, train: Callable[..., Any]
) -> None:
    serves = Batcher(str(run), CPU, "fp32")
    assert not serves._refresh()
    first = serves.loaded
    shutil.rmtree(run)
    assert not serves._refresh()
    assert train(run, "--seed", 2).code == 0
    assert serves._refresh()
    assert serves.loaded
    assert first
    assert serves.loaded.step == first.step
    assert not torch.equal(serves.loaded.model.wte.weight, first.model.wte.weight)
    assert not serves._refresh()


@pytest.mark.usefixtures("look_at_once")
@pytest.mark.parametrize("other", ["tokenizer", "block size"])
def test_a_run_that_was_trained_again_as_another_model_is_not_served(
    run: Path,
    train: Callable[..., Any],
    foreign_data: Path,
    other: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Prompts that wait were encoded for the first one."""
    serves = Batcher(str(run), CPU, "fp32")
    first = serves.loaded
    shutil.rmtree(run)
    options = ("--data", foreign_data) if other == "tokenizer" else ("--model.block-size", 8)
    assert train(run, "--steps", 5, *options).code == 0
    assert not serves._refresh()
    assert serves.loaded is first
    assert "at step 5 has another tokenizer or block size than the run had before" in caplog.text
    caplog.clear()
    assert not serves._refresh()
    assert caplog.text == ""
