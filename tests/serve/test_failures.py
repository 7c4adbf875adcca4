"""A model that fails: the request gets an error, and the server keeps running."""

from pathlib import Path
from typing import Any

import pytest
from tests.editing import edit, flip
from tests.serve.running import events, serving

from overnight.files import sha256_file


def test_what_breaks_in_the_models_thread_is_in_the_log_and_not_told(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the next request is answered."""
    (run / "sitecustomize.py").write_text(
        "from overnight.slots import Slots\n"
        "joined, calls = Slots.join, []\n"
        "def join(slots, texts):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 2:\n"  # the first is the server's own try
        "        raise RuntimeError('a secret')\n"
        "    return joined(slots, texts)\n"
        "Slots.join = join\n"
    )
    with serving(run, PYTHONPATH=str(run)) as server:
        reply = server.complete(model="x", prompt="the", max_tokens=5)
        assert reply.status == 500
        assert reply.json["error"]["message"] == "the server made a mistake; its log says which"
        assert server.complete(model="x", prompt="the", max_tokens=5).status == 200
        server.process.terminate()
        assert "RuntimeError: a secret" in server.process.communicate()[1]


def test_weights_that_have_diverged_are_an_error_and_not_an_end(run: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = run / "checkpoints" / "step_00000004"
    weights = load_file(folder / "model.safetensors")
    weights["ln_f.weight"].fill_(float("nan"))
    save_file(weights, folder / "model.safetensors")
    sha256 = sha256_file(folder / "model.safetensors")
    edit(folder / "state.json", lambda state: state["sha256"].update({"model.safetensors": sha256}))
    with serving(run) as server:
        judged = {"echo": True, "logprobs": 2}
        for fields in ({}, {}, {"logprobs": 2}, judged, judged | {"max_tokens": 0}, judged | {"n": 3}):
            asked: dict[str, Any] = {"model": "x", "prompt": ["the", "a"], "max_tokens": 5} | fields
            reply = server.complete(**asked)
            assert reply.status == 500
            assert "its weights have diverged" in reply.json["error"]["message"]
            told = events(server.stream(**asked))
            assert "its weights have diverged" in told[-1]["error"]["message"]


def test_a_damaged_config_does_not_keep_a_run_from_being_served(run: Path) -> None:
    """The checkpoint has a copy."""
    flip(run / "config.json", 100, 0)
    with serving(run) as server:
        assert server.complete(model="x", prompt="the", max_tokens=5).status == 200
        server.process.terminate()
        assert "The copy in step_00000004 is used." in server.process.communicate()[1]
