import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests import editing

from overnight.data import tokens
from overnight.data.manifest import Data
from overnight.data.prepare import already_there
from overnight.errors import UserError


def edit(folder: Path, change: Callable[[dict], object]) -> None:
    """Change manifest.json, and seal it again."""
    editing.edit(folder / "manifest.json", change)


def use(folder: Path) -> None:
    """What `train` and a second `prepare` do with a data folder."""
    data = Data(folder)
    data.verify()
    assert len(data.fingerprint) == 64
    assert already_there(folder, {"source": data.manifest.source, "tokenizer": "char"}) is not None


def test_a_sound_folder_opens(folder: Path) -> None:
    use(folder)
    data = Data(folder)
    assert len(data.manifest.shards) == 4
    assert {split: len(data.split(split)) for split in ("train", "val")} == data.manifest.tokens
    row = data.split("train")
    assert data.tokenizer.decode(row.read(0, 20)) == "to be, or not to be"


def truncate(folder: Path) -> None:
    path = folder / "train_000002.bin"
    path.write_bytes(path.read_bytes()[:-2])


def another_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(json.dumps(tokens.train_char(["abc"]).to_json()))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (truncate, r"shard .*train_000002\.bin is damaged: .* bytes where its header says"),
        (lambda folder: (folder / "val_000000.bin").unlink(), r"cannot read the shard .*val_000000\.bin"),
        (lambda folder: (folder / "tokenizer.json").unlink(), r"cannot read the tokenizer"),
        (another_tokenizer, r"tokenizer\.json is not the one of the manifest"),
        (lambda folder: (folder / "manifest.json").unlink(), r"overnight prepare SOURCE --out .*copy"),
        (shutil.rmtree, r"no prepared data in .*copy"),
    ],
)
def test_what_does_not_fit_the_manifest_is_refused(
    damage: Callable[[Path], object], says: str, folder: Path
) -> None:
    damage(folder)
    with pytest.raises(UserError, match=says):
        Data(folder)


@pytest.mark.parametrize("count", [299, 301, 0, -1])
def test_a_shard_with_another_count_than_the_manifests_is_refused(count: int, folder: Path) -> None:
    edit(folder, lambda manifest: manifest["shards"][0].update(tokens=count))
    with pytest.raises(UserError, match="is damaged: the tokens are"):
        Data(folder)


@pytest.mark.parametrize("where", ["..", "sub", "absolute"])
def test_a_name_that_leads_out_of_the_folder_is_refused(where: str, folder: Path) -> None:
    outside = {"..": folder.parent, "sub": folder / "sub", "absolute": folder}[where]
    outside.mkdir(exist_ok=True)
    shutil.copy(folder / "train_000001.bin", outside / "out.bin")
    name = str(outside / "out.bin") if where == "absolute" else f"{where}/out.bin"
    edit(folder, lambda manifest: manifest["shards"][0].update(file=name))
    with pytest.raises(UserError, match="leads out of the folder"):
        Data(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b"null", b"[]", b"{}", b"5"])
def test_a_manifest_that_is_none_is_refused(content: bytes, folder: Path) -> None:
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        Data(folder)


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        *(("shards", wrong) for wrong in (None, 5, "ab", [5], [{}], [None], ["train_000001.bin"], {})),
        *(("shards", wrong) for wrong in ([], [{"file": "val_000000.bin", "split": "val", "tokens": 89}])),
        *(("tokenizer", wrong) for wrong in (None, 5, "ab", [], {}, {"sha256": None}, {"sha256": "0"})),
        *(("request", wrong) for wrong in (None, 5, "ab", [])),
        *(("tokens", wrong) for wrong in (None, {}, {"train": 1, "val": 1})),
        ("unknown", "field"),
    ],
)
def test_a_manifest_with_a_field_that_cannot_be_is_refused(field: str, wrong: Any, folder: Path) -> None:
    edit(folder, lambda manifest: manifest.update({field: wrong}))
    with pytest.raises(UserError):
        use(folder)


@pytest.mark.parametrize("field", ["file", "split", "tokens", "sha256"])
@pytest.mark.parametrize("wrong", [None, 5, "", [], "\0"])
def test_a_shards_entry_that_cannot_be_is_refused(field: str, wrong: Any, folder: Path) -> None:
    edit(folder, lambda manifest: manifest["shards"][1].update({field: wrong}))
    with pytest.raises(UserError):
        use(folder)


@pytest.mark.parametrize("field", ["file", "split", "tokens", "sha256"])
def test_a_shards_entry_without_a_field_is_refused(field: str, folder: Path) -> None:
    edit(folder, lambda manifest: manifest["shards"][1].pop(field))
    with pytest.raises(UserError, match=rf"manifest\.json is damaged: .*'{field}'"):
        use(folder)


@pytest.mark.parametrize("field", ["source", "documents", "tokens", "dtype", "tokenizer", "shards"])
def test_a_manifest_without_a_field_is_refused(field: str, folder: Path) -> None:
    edit(folder, lambda manifest: manifest.pop(field))
    with pytest.raises(UserError, match=rf"manifest\.json is damaged: .*'{field}'"):
        Data(folder)


@pytest.mark.parametrize("name", ["train_000001.bin", "train_000002.bin", "val_000000.bin"])
def test_verify_finds_a_flipped_bit(name: str, folder: Path) -> None:
    Data(folder).verify()
    content = bytearray((folder / name).read_bytes())
    content[-2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} has changed since it was made"):
        Data(folder).verify()


def test_the_fingerprint_does_not_depend_on_the_folders_name(folder: Path) -> None:
    before = Data(folder).fingerprint
    assert Data(folder.rename(folder.with_name("another name"))).fingerprint == before


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["shards"][0].update(sha256="0" * 64),
        lambda manifest: manifest["shards"].insert(0, manifest["shards"].pop(1)),
        lambda manifest: manifest["shards"].pop(),
        lambda manifest: manifest["shards"][0].update(split="val"),
    ],
    ids=["tokens", "order", "fewer", "split"],
)
def test_the_fingerprint_tells_data_apart(change: Callable[[dict], object], folder: Path) -> None:
    before = Data(folder).fingerprint

    def consistently(manifest: dict) -> None:
        change(manifest)
        manifest["tokens"] = {
            split: sum(shard["tokens"] for shard in manifest["shards"] if shard["split"] == split)
            for split in ("train", "val")
        }

    edit(folder, consistently)
    assert Data(folder).fingerprint != before
