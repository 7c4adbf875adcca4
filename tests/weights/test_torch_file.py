"""torch.save's files: the tensors that torch.load reads, and none of the work that a hostile one asks for."""

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from overnight.errors import UserError
from overnight.weights import nanogpt
from overnight.weights.torch_file import Stored, TorchFile

TENSORS = {
    "plain": torch.arange(12.0).reshape(3, 4),
    "transposed": torch.arange(12.0).reshape(3, 4).t(),
    "a part": torch.arange(100.0)[10:20:3],
    "expanded": torch.ones(1).expand(5, 7),
    "a number": torch.tensor(2.5),
    "empty": torch.empty(0, 3),
    "bf16": torch.ones(3, 2, dtype=torch.bfloat16),
    "fp16": torch.ones(3, dtype=torch.float16),
    "fp64": torch.ones(3, dtype=torch.float64),
    "int64": torch.arange(4),
    "bool": torch.tensor([True, False]),
    "parameter": torch.nn.Parameter(torch.ones(2, 2)),
}


def test_it_reads_the_tensors_that_torch_reads(tmp_path: Path) -> None:
    tied = torch.nn.Linear(4, 4)
    saved = {"model": TENSORS, "module": tied.state_dict(), "twice": [TENSORS["plain"], TENSORS["plain"]]}
    torch.save(saved | {"plain": [1, -(2**40), 0.5, None, True, "x", (1, (2, 3)), {}]}, tmp_path / "x.pt")
    expected = torch.load(tmp_path / "x.pt", weights_only=True)
    with TorchFile(tmp_path / "x.pt") as file:
        assert file.saved["plain"] == expected["plain"]
        assert list(file.saved["module"]) == list(expected["module"])
        for name, tensor in expected["model"].items():
            stored = file.saved["model"][name]
            assert isinstance(stored, Stored)
            assert stored.dtype == tensor.dtype
            assert torch.equal(file.tensor(name, stored), tensor), name


PROTOCOL, EMPTY = b"\x80\x02", b"}"
ASKING = b"cbuiltins\nbytearray\n\x8a\x05" + (3 * 10**9).to_bytes(5, "little") + b"\x85R."
HOSTILE = {
    "a key of 2**60 tuples": (b"}K\x01\x85" + b"q\x01h\x01\x86" * 60 + b"K\x01s.", "is damaged"),
    "a key of 300,000 tuples in one another": (b"}K\x01" + b"\x85" * 300_000 + b"K\x01s.", "is damaged"),
    "300,000 lists in one another": (b"]" * 300_000 + b"a" * 299_999 + b".", "no checkpoint of nanoGPT"),
    "an array of 3 GB": (ASKING, r"asks for builtins\.bytearray"),
    "a command": (b"cos\nsystem\nX\x04\x00\x00\x00true\x85R.", r"asks for os\.system"),
    "a name of 1 MB": (b"cos\n" + b"x" * 10**6 + b"\n.", r"asks for os\.xxx"),
    "a function that is not called": (b"ctorch\nFloatStorage\n)R.", "is damaged"),
    "nothing": (b".", "is damaged"),
    "no end": (b"}", "is damaged"),
    "from before a mark": (b"K\x01(\x85t.", "is damaged"),
}  # fmt: skip


def write_zip(path: Path, description: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        file.writestr("x/data.pkl", PROTOCOL + description)
        file.writestr("x/byteorder", b"little")
    return path


@pytest.mark.parametrize(("description", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_description_is_refused_at_once(tmp_path: Path, description: bytes, message: str) -> None:
    path = write_zip(tmp_path / "x.pt", description)
    with pytest.raises(UserError, match=message) as refused:
        nanogpt.read(path)
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize("change", ["packed", "unlisted", "a view beyond its storage", "content missing"])
def test_a_file_that_claims_more_than_it_has_is_refused(tmp_path: Path, change: str) -> None:
    path = tmp_path / "x.pt"
    torch.save({"model": {"wte.weight": torch.zeros(1000, 32)}, "model_args": {}}, path)
    with zipfile.ZipFile(path) as old:
        parts: dict[str, Any] = {name: old.read(name) for name in old.namelist()}
    packed = zipfile.ZIP_DEFLATED if change in ("packed", "unlisted") else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", packed) as new:
        for name, content in parts.items():
            if change == "a view beyond its storage" and name.endswith("data/0"):
                content = content[:-4]
            if change != "content missing" or not name.endswith("data/0"):
                new.writestr(name, content)
    if change == "unlisted":  # a version of zip from the future, which torch's reader does not look at
        path.write_bytes(path.read_bytes().replace(b"PK\x01\x02\x14\x03\x14", b"PK\x01\x02\x14\x03\x63"))
    with pytest.raises(UserError, match=r"is packed|is damaged"), TorchFile(path) as file:
        file.tensor("wte.weight", file.saved["model"]["wte.weight"])


def test_an_empty_tensor_of_an_impossible_shape_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {"wte.weight": torch.zeros(4)}}, tmp_path / "x.pt")
    with TorchFile(tmp_path / "x.pt") as file:
        storage = file.saved["model"]["wte.weight"].storage
        for shape in ((0, 2**70), (0, 2**40, 2**40), (0, *[1] * 100_000)):
            try:
                found = file.tensor("wte.weight", Stored(storage, 0, shape, (1,) * len(shape)))
            except UserError as error:
                assert "has an impossible shape" in str(error)  # noqa: PT017
            else:
                assert found.numel() == 0


def test_a_name_of_a_megabyte_is_not_shown_whole(tmp_path: Path) -> None:
    sizes = {"n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 8, "vocab_size": 20}
    torch.save({"model": {"x" * 10**6: torch.zeros(4)}, "model_args": sizes}, tmp_path / "x.pt")
    with pytest.raises(UserError) as refused:
        nanogpt.read(tmp_path / "x.pt")
    assert len(str(refused.value)) < 500


@pytest.mark.skipif(not Path("/proc/self/pagemap").exists(), reason="the system has no such file")
def test_a_file_of_the_system_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.pt").symlink_to("/proc/self/pagemap")
    with pytest.raises(UserError, match=r"cannot read .*: it is a file of the system, not of a disk"):
        nanogpt.read(tmp_path / "x.pt")
