"""Checkpoints are complete or absent, with bytes that depend on the weights alone; pruning keeps the best."""

import json
import os
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.small_checkpoint import made, publish, run, state, update

from overnight import checkpoint, saved
from overnight.saved import OPTIMIZER, STATE, WEIGHTS, check, folder, list_steps

__all__ = ["run"]


def test_what_is_published_comes_back_exactly(run: Path) -> None:
    model, optimizer = made(3)
    path = publish(run, model, optimizer, state(3, val_loss=2.5))
    assert path == run / "checkpoints" / "step_00000003"
    assert sorted(file.name for file in path.iterdir()) == [WEIGHTS, OPTIMIZER, STATE]
    found = check(path)
    assert (found.step, found.tokens, found.seed, found.data, found.val_loss) == (
        3,
        192,
        1337,
        "fingerprint",
        2.5,
    )

    again, fresh = made(0, seed=2)
    checkpoint.load_weights(path, again)
    checkpoint.load_optimizer(path, again, fresh)
    for number in range(4, 6):
        for ours, theirs in zip(model.parameters(), again.parameters(), strict=True):
            assert torch.equal(ours, theirs)
            assert optimizer.state[ours].keys() == fresh.state[theirs].keys()
            for key in optimizer.state[ours]:
                assert torch.equal(optimizer.state[ours][key], fresh.state[theirs][key])
        update(model, optimizer, number)
        update(again, fresh, number)


def test_equal_weights_are_equal_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = []
    for place, now in (("here", 1e9), ("there/deeper", 2e9)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        (tmp_path / place).mkdir(parents=True)
        path = publish(tmp_path / place, *made(2), state(2))
        files.append([(path / name).read_bytes() for name in (WEIGHTS, OPTIMIZER, STATE)])
    assert files[0] == files[1]


def test_safetensors_hold_tensors_and_nothing_else(run: Path) -> None:
    model, optimizer = made(1)
    path = publish(run, model, optimizer, state(1))
    names = {name for name, _ in model.named_parameters()}
    moments = {f"{name}.{key}" for name in names for key in ("step", "exp_avg", "exp_avg_sq")}
    for file, expected in ((WEIGHTS, names), (OPTIMIZER, moments)):
        content = (path / file).read_bytes()
        (length,) = struct.unpack("<Q", content[:8])  # the format: 8 bytes of length, a JSON header, data
        assert json.loads(content[8 : 8 + length]).keys() == expected


def test_files_are_the_librarys_byte_for_byte(run: Path) -> None:
    model, optimizer = made(2)
    path = publish(run, model, optimizer, state(2))
    for name in (WEIGHTS, OPTIMIZER):
        save_file(load_file(path / name), run / name)
        assert (path / name).read_bytes() == (run / name).read_bytes()


@pytest.mark.parametrize(("broken", "call"), [("write_tensors", n) for n in (1, 2)] + [("write_synced", 1)])
@pytest.mark.parametrize("error", [OSError("disk"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_a_save_that_fails_leaves_what_was_there(
    run: Path, monkeypatch: pytest.MonkeyPatch, broken: str, call: int, error: BaseException
) -> None:
    publish(run, *made(1), state(1))
    real, calls = getattr(checkpoint, broken), []

    def fail(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise error
        return real(*arguments)

    monkeypatch.setattr(checkpoint, broken, fail)
    with pytest.raises(type(error)):
        publish(run, *made(2), state(2))
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_00000001"]
    assert check(folder(run, 1)).step == 1


def test_leftovers_of_a_kill_are_removed_by_the_next_save(run: Path) -> None:
    for name in (".step_00000001", ".step_00000002", ".step_00000007.removed"):
        (run / "checkpoints" / name).mkdir(parents=True)
        (run / "checkpoints" / name / WEIGHTS).write_bytes(b"half")
    assert list_steps(run) == []
    assert saved.newest_sound(run) == (None, [])
    publish(run, *made(2), state(2))
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_00000002"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_a_fifo_among_the_leftovers_is_removed(run: Path) -> None:
    """Removing it as a folder would wait for somebody who writes to it."""
    (run / "checkpoints").mkdir(parents=True)
    os.mkfifo(run / "checkpoints" / ".step_00000001.0123.removed")
    publish(run, *made(2), state(2))
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_00000002"]


@pytest.mark.parametrize("target", ["nothing", "somewhere"])
def test_a_link_at_the_name_of_the_next_checkpoint_gives_way(run: Path, tmp_path: Path, target: str) -> None:
    (tmp_path / "somewhere").mkdir()
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "step_00000002").symlink_to(tmp_path / target)
    publish(run, *made(2), state(2))
    assert not folder(run, 2).is_symlink()
    assert check(folder(run, 2)).step == 2
    assert not any((tmp_path / "somewhere").iterdir())


def test_only_folders_of_a_checkpoints_name_are_checkpoints(run: Path) -> None:
    names = "step_00000001 step_123456789 .step_00000002 step_3 step_0000000x damaged_step_00000004_1".split()
    for name in names:
        (run / "checkpoints" / name).mkdir(parents=True)
    (run / "checkpoints" / "step_00000005").touch()
    for name in ("step_000000070", "step_0000007\u0663", "step_000000001"):  # of nine digits, an Arabic one
        (run / "checkpoints" / name).mkdir()
    assert list_steps(run) == [1, 123456789]


@pytest.mark.parametrize(
    ("losses", "keep", "left"),
    [
        ({1: 3.0, 2: 1.0, 3: 2.0, 4: 5.0}, 2, [2, 3, 4]),
        ({1: 3.0, 2: 1.0, 3: 2.0, 4: 5.0}, 1, [2, 4]),
        ({1: 3.0, 2: 2.0, 3: 1.0}, 1, [3]),
        ({1: 3.0, 2: 2.0, 3: 1.0}, 5, [1, 2, 3]),
        ({1: None, 2: None, 3: None}, 1, [3]),
        ({1: None, 2: 2.0, 3: None, 4: None}, 1, [2, 4]),
        ({1: 1.0, 2: None, 3: 2.0}, 1, [1, 3]),
        ({}, 1, []),
    ],
)
def test_the_newest_and_the_best_are_kept(
    run: Path, losses: dict[int, float | None], keep: int, left: list[int]
) -> None:
    for step, loss in losses.items():
        publish(run, *made(0), state(step, loss))
    checkpoint.prune(run, keep)
    assert list_steps(run) == left
    if left:
        assert len(list((run / "checkpoints").iterdir())) == len(left)  # nothing hidden either


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", "null", '{"val_loss": "x"}'])
def test_an_old_damaged_state_does_not_stop_the_run(run: Path, content: str) -> None:
    for step in (1, 2, 3):
        publish(run, *made(0), state(step, val_loss=float(step)))
    (folder(run, 1) / STATE).write_text(content)
    checkpoint.prune(run, keep=1)
    assert list_steps(run) == [2, 3]
