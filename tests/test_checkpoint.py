"""A checkpoint is complete or absent, its bytes depend on the weights alone, and damage is noticed."""

import json
import os
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from overnight import checkpoint, saved
from overnight.config import ModelConfig, OptimConfig
from overnight.errors import UserError
from overnight.models.gpt2 import GPT
from overnight.optim import adamw
from overnight.saved import OPTIMIZER, STATE, WEIGHTS, Damaged, check, folder, list_steps
from overnight.state import State

TINY = ModelConfig(1, 2, 8, 4, 10)
CPU = torch.device("cpu")


def state(step: int, val_loss: float | None = None) -> State:
    return State(step, 64 * step, 1337, "fingerprint", 100, val_loss, {})


def publish(run: Path, model: GPT, optimizer: torch.optim.Optimizer, state: State) -> Path:
    tensors: dict[str, dict[str, torch.Tensor]] = {WEIGHTS: {}, OPTIMIZER: {}}
    for file, name, tensor in checkpoint.tensors_of(model, optimizer):
        tensors[file][name] = tensor.detach()
    return checkpoint.publish(run, tensors[WEIGHTS], tensors[OPTIMIZER], state)


def made(updates: int, seed: int = 1) -> tuple[GPT, torch.optim.AdamW]:
    """A model after some updates, and its optimizer."""
    model = GPT(TINY, 10).init_weights(seed)
    optimizer = adamw(model, OptimConfig(warmup_steps=0))
    for number in range(updates):
        update(model, optimizer, number)
    return model, optimizer


def update(model: GPT, optimizer: torch.optim.Optimizer, number: int) -> None:
    ids = torch.randint(0, 10, (2, 5), generator=torch.Generator().manual_seed(number))
    model(ids[:, :-1], ids[:, 1:]).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """An empty run's folder."""
    return tmp_path


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


def test_only_folders_of_a_checkpoints_name_are_checkpoints(run: Path) -> None:
    names = "step_00000001 step_123456789 .step_00000002 step_3 step_0000000x damaged_step_00000004_1".split()
    for name in names:
        (run / "checkpoints" / name).mkdir(parents=True)
    (run / "checkpoints" / "step_00000005").touch()
    assert list_steps(run) == [1, 123456789]


def rewrite(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda path: (path / name).write_bytes(change((path / name).read_bytes()))


def flip(position: int) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        at = position % len(content)
        return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]

    return change


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit of the weights' header": rewrite(WEIGHTS, flip(20)),
    "a bit of the weights": rewrite(WEIGHTS, flip(-5)),
    "a bit of the optimizer": rewrite(OPTIMIZER, flip(-5)),
    "weights cut short": rewrite(WEIGHTS, lambda content: content[:-1]),
    "weights too long": rewrite(WEIGHTS, lambda content: content + b"\0"),
    "no weights": lambda path: (path / WEIGHTS).unlink(),
    "no optimizer": lambda path: (path / OPTIMIZER).unlink(),
    "no state": lambda path: (path / STATE).unlink(),
    "empty state": rewrite(STATE, lambda _: b""),
    "torn state": rewrite(STATE, lambda content: content[:50]),
    "a list for state": rewrite(STATE, lambda _: b"[]"),
    "null for state": rewrite(STATE, lambda _: b"null"),
    "deep state": rewrite(STATE, lambda _: b"[" * 100_000),
    "bytes for state": rewrite(STATE, lambda _: b"\xff\xfe"),
    "state of another step": rewrite(STATE, lambda content: content.replace(b'"step": 1', b'"step": 2')),
    "state without checksums": rewrite(STATE, lambda content: content.replace(b"model.safe", b"modem.safe")),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_noticed(run: Path, damage: Callable[[Path], object]) -> None:
    path = publish(run, *made(1), state(1))
    damage(path)
    with pytest.raises(Damaged):
        check(path)
    assert list_steps(run) == [1]  # looking changes nothing


@pytest.mark.parametrize(
    ("field", "was", "now"),
    [
        ("records_bytes", "100", "101"), ("records_bytes", "100", '"x"'), ("tokens", "64", "65"),
        ("seed", "1337", "1336"), ("data", '"fingerprint"', '"fingerprinu"'), ("val_loss", "2.5", "0.5"),
        ("val_loss", "2.5", '"x"'), ("scaler", "{}", '{"scale": 1}'),
    ],
)  # fmt: skip
def test_damage_inside_the_state_is_noticed(run: Path, field: str, was: str, now: str) -> None:
    """Every byte of a checkpoint is vouched for, those of state.json too."""
    path = publish(run, *made(1), state(1, val_loss=2.5))
    before = (path / STATE).read_text()
    (path / STATE).write_text(before.replace(f'"{field}": {was}', f'"{field}": {now}'))
    assert (path / STATE).read_text() != before
    with pytest.raises(Damaged):
        check(path)


@pytest.mark.parametrize("name", [WEIGHTS, OPTIMIZER])
@pytest.mark.parametrize("config", [{}, {"model": {"n_layer": 2, "vocab_size": 100}}])
def test_a_file_larger_than_its_model_is_not_read_to_its_end(run: Path, name: str, config: dict) -> None:
    """A stranger's sparse file costs no disk, and hashing it takes hours."""
    path = publish(run, *made(1), replace(state(1), config=config))
    assert check(path).config == config
    os.truncate(path / name, 1 << 42)
    with pytest.raises(Damaged, match=f"{name} is larger than the model"):
        check(path)


def test_the_newest_sound_one_is_found_and_damaged_ones_step_aside(run: Path) -> None:
    for step in (1, 2, 3):
        publish(run, *made(step), state(step))
    for step in (2, 3):
        DAMAGES["weights cut short"](folder(run, step))
    found, wrong = saved.newest_sound(run)
    assert found is not None
    assert found.step == 1
    assert [text.split(":")[0] for text in wrong] == ["step_00000003", "step_00000002"]
    for number in (1, 2):  # twice: it may happen again to the steps trained again
        moved = checkpoint.move_damaged_aside(run, found)
        assert moved == [f"damaged_step_0000000{step}_{number}" for step in (2, 3)]
        assert list_steps(run) == [1]
        for step in (2, 3):
            publish(run, *made(step), state(step))


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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"wte.weight": torch.zeros(11, 8)}, r"wte\.weight is \(11, 8\), not \(10, 8\)\."),
        ({"ln_f.bias": torch.zeros(8, 1)}, r"ln_f\.bias is \(8, 1\), not \(8,\)\."),
        ({"ln_f.bias": None}, r"ln_f\.bias is missing, not \(8,\)\."),
        ({"extra": torch.zeros(10, 8)}, r"extra is \(10, 8\), which the model does not have\."),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    run: Path, change: dict[str, torch.Tensor | None], words: str
) -> None:
    path = publish(run, *made(0), state(1))
    tensors = load_file(path / WEIGHTS) | change
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path / WEIGHTS)
    model, _ = made(0, seed=2)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with pytest.raises(UserError, match=words):
        checkpoint.load_weights(path, model)
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("content", [b"", b"junk", b"\xff" * 100])
def test_what_is_no_safetensors_file_is_refused(run: Path, content: bytes) -> None:
    path = publish(run, *made(0), state(1))
    (path / WEIGHTS).write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read .*model\.safetensors"):
        checkpoint.load_weights(path, made(0)[0])
