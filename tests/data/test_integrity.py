"""Data that changes under a run is noticed; a run that read it stops with its last checkpoint from before."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.conftest import TINY
from tests.editing import flip
from tests.violence import assert_same_end, events

from overnight import cli, train
from overnight.data import integrity
from overnight.data.integrity import Integrity
from overnight.data.manifest import Data
from overnight.data.shards import ChangedData, open_shard
from overnight.saved import list_steps


@pytest.fixture
def data(data_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(data_folder, tmp_path / "data"))


@pytest.fixture
def watched(data: Path) -> Iterator[Integrity]:
    """Looks at stamps only: its thread rests."""
    found = Integrity(Data(data), active=True)
    found._over.set()
    yield found
    found.close()


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwrite(path: Path) -> None:
    flip(path, path.stat().st_size - 1, 0)


def replace(path: Path) -> None:
    """By another file of the same size."""
    other = path.with_name("other")
    other.write_bytes(path.read_bytes()[:-1] + b"\x07")
    os.replace(other, path)


def overwrite_at_the_same_time(path: Path) -> None:
    """As `cp -p` and `rsync --inplace` do: the time of change is set back."""
    before = path.stat()
    overwrite(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES = [truncate, overwrite, overwrite_at_the_same_time, replace, Path.unlink]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["train_000001.bin", "val_000000.bin"])
def test_a_changed_shard_is_named(watched: Integrity, data: Path, name: str, change: Callable) -> None:
    assert watched.look(now=True) == ""
    change(data / name)
    assert f"the shard {data / name} " in watched.look(now=True)
    with pytest.raises(ChangedData, match=name):
        watched.settle_validation()


def test_a_file_that_only_looks_changed_is_fine_but_reported(data: Path) -> None:
    """Touched, or copied back from a backup; what was read in between may have been something else."""
    messages: list[str] = []
    watched = Integrity(Data(data), say=messages.append)
    watched._over.set()
    (data / "val_000000.bin").chmod(0o444)  # changes nothing of what is in it
    assert watched.look(now=True) == ""
    assert messages == []
    for path in data.glob("*.bin"):
        shutil.copy(path, data / "copy")
        os.replace(data / "copy", path)
        os.utime(path, (1, 1))
    assert watched.look(now=True) == ""
    watched.settle_validation()
    assert [message.split(" was modified")[0] for message in messages] == [
        f"the shard {data / entry['file']}" for entry in Data(data).manifest.shards
    ]
    watched.close()


def test_damage_that_no_stamp_shows_is_found_by_hashing(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad disk; or damage from before the run."""
    overwrite(data / "train_000001.bin")
    monkeypatch.setattr(integrity, "SHARE", 1.0)
    found = Integrity(Data(data))
    found._thread.join(60)
    assert "train_000001.bin has changed: its SHA-256 is not the one in the manifest" in found.problem
    found.close()


def test_a_validation_is_believed_only_of_sound_data(data: Path) -> None:
    overwrite(data / "val_000000.bin")
    found = Integrity(Data(data))
    with pytest.raises(ChangedData, match="val_000000"):
        found.settle_validation()
    found.close()


def test_the_validation_split_is_hashed_first(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    monkeypatch.setattr(Integrity, "_hash_slowly", lambda self, path: hashed.append(path.name))
    Integrity(Data(data))._thread.join(60)
    assert hashed[0] == "val_000000.bin"


def test_a_short_run_on_damaged_data_ends_with_an_error(data: Path, tmp_path: Path, capsys) -> None:
    """The background has had no time, and the reader sees ids like any others."""
    overwrite(data / "train_000001.bin")
    options = ["train", "shakespeare-cpu", "--data", str(data), *TINY, "--save-every", "2"]
    assert cli.run([*options, "--run", str(tmp_path / "run")]) == 1
    assert "train_000001.bin has changed" in capsys.readouterr().err


def test_shards_that_nobody_had_time_for_are_counted(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(integrity, "AT_ONCE", 0)
    monkeypatch.setattr(Integrity, "_hash_all", lambda self: None)
    options = ["train", "shakespeare-cpu", "--data", str(data), *TINY]
    assert cli.run([*options, "--run", str(tmp_path / "run")]) == 0
    shards = len(list(data.glob("*.bin")))
    assert f"1 of {shards} shards were compared with the manifest" in capsys.readouterr().out


def test_other_ranks_of_a_host_do_not_look(data: Path) -> None:
    found = Integrity(Data(data), active=False)
    truncate(data / "train_000001.bin")
    assert found.look(now=True) == ""
    found.settle_validation()
    found.close()


def test_a_shard_cut_short_while_it_is_read_is_an_error_not_a_signal(data: Path) -> None:
    """A memory map would end the process (SIGBUS)."""
    shard = open_shard(data / "train_000001.bin")
    truncate(data / "train_000001.bin")
    assert len(shard.read(0, 10)) == 10
    with pytest.raises(ChangedData, match=r"train_000001\.bin has become shorter"):
        shard.read(len(shard) - 10, 10)


def before_update(number: int, act: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do this before an update of a run, with its checkpoints saved; stamps are compared at every look."""
    update = train.Session.update

    def acted(self: train.Session, step: int) -> str:
        if step == number:
            self.saver.collect(wait=True)
            act()
        return update(self, step)

    monkeypatch.setattr(integrity, "LOOK_EVERY", 0.0)
    monkeypatch.setattr(train.Session, "update", acted)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["train_000001.bin", "val_000000.bin"])
def test_a_run_stops_before_it_saves_what_it_learnt_from_changed_data(
    name: str, change: Callable, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Restored, the same command ends as if nothing had happened."""
    options = ["train", "shakespeare-cpu", "--data", str(data), *TINY, "--steps", "9", "--save-every", "2"]
    assert cli.run([*options, "--run", str(tmp_path / "whole")]) == 0
    shutil.copytree(data, tmp_path / "backup")
    before_update(6, lambda: change(data / name), monkeypatch)
    capsys.readouterr()
    run = tmp_path / "run"
    assert cli.run([*options, "--run", str(run)]) == 1
    said = capsys.readouterr().err
    assert name in said
    assert "the same command" in said
    assert len(said.splitlines()) <= 3
    assert list_steps(run)[-1] == 4
    assert name in events(run, "data_changed")[0]["detail"]["problem"]
    monkeypatch.undo()
    shutil.rmtree(data)
    shutil.copytree(tmp_path / "backup", data)
    assert cli.run([*options, "--run", str(run)]) == 0
    assert_same_end(run, tmp_path / "whole")


def test_a_shard_that_was_restored_is_reported(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    shard, run = data / "train_000001.bin", tmp_path / "run"

    def there_and_back() -> None:
        sound = shard.read_bytes()
        overwrite(shard)
        shard.write_bytes(sound)

    before_update(2, there_and_back, monkeypatch)
    assert cli.run(["train", "shakespeare-cpu", "--data", str(data), *TINY, "--run", str(run)]) == 0
    assert f"the shard {shard} was modified" in capsys.readouterr().out
    assert shard.name in events(run, "data_touched")[0]["detail"]["problem"]


def test_an_id_that_the_tokenizer_does_not_have_counts_as_changed_data(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Though it is read before anybody looks at the shard."""
    run = tmp_path / "run"

    def spoil() -> None:
        for shard in data.glob("train_*.bin"):
            shard.write_bytes(shard.read_bytes()[:1024] + b"\xff" * (shard.stat().st_size - 1024))

    before_update(2, spoil, monkeypatch)
    monkeypatch.setattr(Integrity, "look", lambda self, now=False: "")
    assert cli.run(["train", "shakespeare-cpu", "--data", str(data), *TINY, "--run", str(run)]) == 2
    damaged = re.compile(rf"the shard {data}/train_\d+\.bin is damaged: token [\d,]+ of the split is 65535")
    assert damaged.search(capsys.readouterr().err)
    assert damaged.search(events(run, "data_changed")[0]["detail"]["problem"])
