"""Which checkpoint of a run is served while the run still trains."""

import shutil
from pathlib import Path
from typing import Any

from tests.serve.running import serving, until


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
