"""A damaged checkpoint is noticed and moved aside; weights that do not fit the model are refused."""

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.small_checkpoint import made, publish, run, state

from overnight import checkpoint, saved
from overnight.errors import Failure, UserError
from overnight.saved import OPTIMIZER, STATE, WEIGHTS, Damaged, check, folder, list_steps

__all__ = ["run"]


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


def fifo(path: Path) -> None:
    os.mkfifo(path)


def looping_link(path: Path) -> None:
    path.symlink_to(path.name)


def link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def bound_socket(path: Path) -> None:
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as one:  # its path may be too long
        one.bind(path.name)


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege, FIFOs do not exist")
@pytest.mark.parametrize("name", [STATE, WEIGHTS, OPTIMIZER])
@pytest.mark.parametrize("make", [fifo, looping_link, link_to_a_device, bound_socket, Path.mkdir])
def test_what_is_not_a_file_is_damage_with_a_fall_back(
    run: Path, make: Callable[[Path], object], name: str
) -> None:
    for step in (1, 2):
        publish(run, *made(step), state(step))
    (folder(run, 2) / name).unlink()
    make(folder(run, 2) / name)
    found, wrong = saved.newest_sound(run)
    assert found is not None
    assert found.step == 1
    assert len(wrong) == 1
    assert name in wrong[0]


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, getattr(errno, "ESTALE", errno.EIO)])
def test_a_disk_that_cannot_be_read_is_a_failure_that_names_the_file(
    run: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = publish(run, *made(1), state(1))

    def fail(file: Path, most: int | None = None) -> str:
        raise OSError(number, os.strerror(number), str(file))

    monkeypatch.setattr(saved, "sha256_file", fail)
    with pytest.raises(Failure, match=rf"cannot read the checkpoint .*{os.strerror(number)} \({WEIGHTS}\)"):
        check(path)


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


DTYPES = {
    "I64": torch.int64, "BOOL": torch.bool, "F64": torch.float64, "BF16": torch.bfloat16,
    "C64": torch.complex64, "F8_E4M3": torch.float8_e4m3fn,
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tensor_that_is_not_fp32_is_named(run: Path, dtype: str) -> None:
    path = publish(run, *made(1), state(1))
    model, optimizer = made(0)
    for name, tensor in ((WEIGHTS, "ln_f.bias"), (OPTIMIZER, "ln_f.bias.exp_avg")):
        tensors = load_file(path / name)
        save_file(tensors | {tensor: tensors[tensor].to(DTYPES[dtype])}, path / name)
        words = rf"{name} is not a checkpoint of Overnight's: {tensor} is {dtype}, not F32\."
        with pytest.raises(UserError, match=words):
            checkpoint.read_tensors(path / name)
    with pytest.raises(UserError, match=f"ln_f.bias is {dtype}"):
        checkpoint.load_weights(path, model)
    with pytest.raises(UserError, match=f"ln_f.bias.exp_avg is {dtype}"):
        checkpoint.load_optimizer(path, model, optimizer)


@pytest.mark.parametrize("content", [b"", b"junk", b"\xff" * 100])
def test_what_is_no_safetensors_file_is_refused(run: Path, content: bytes) -> None:
    path = publish(run, *made(0), state(1))
    (path / WEIGHTS).write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read .*model\.safetensors"):
        checkpoint.load_weights(path, made(0)[0])
