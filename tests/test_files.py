"""Files: whole or as they were; JSON and disk errors in a line."""

import errno
import hashlib
import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from overnight import files
from overnight.errors import Failure, UserError
from overnight.files import (
    clear_disk_errors,
    open_new,
    open_own,
    open_regular,
    read_bytes,
    read_json,
    reason,
    sealed,
    sha256_file,
    subfolder,
    to_json,
    unused,
    write_synced,
)

links = pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need a privilege on Windows")
fifos = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs here")


@pytest.mark.parametrize("content", ["text, ä and 🌙\r\n", b"\x00\xff", ""])
def test_what_is_written_is_there_and_nothing_else(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "file"
    path.write_text("the old content, which is longer")
    write_synced(path, content)
    expected = content.encode() if isinstance(content, str) else content
    assert path.read_bytes() == expected
    assert list(tmp_path.iterdir()) == [path]
    assert sha256_file(path) == hashlib.sha256(expected).hexdigest()


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="I/O error"):
        write_synced(path, "new")
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"a": 1', b"[1]", b"null", b"3", b"\xff\xfe", b"{'a': 1}", b"[" * 100_000]
)
def test_json_that_is_no_object_is_refused_with_its_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"config.*is damaged.*make it again"):
        read_json(path, "config")


def test_a_missing_file_is_refused_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the config .*none\.json: No such file"):
        read_json(tmp_path / "none.json", "config")


def test_json_comes_back_and_nan_is_never_written(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, "ä\u2028"], "b": {"c": True}}
    write_synced(tmp_path / "file", to_json(value))
    assert read_json(tmp_path / "file", "test") == value
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json({"a": float("nan")})


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "saving x: the disk is full. Free some space and run the command again."),
        (errno.EDQUOT, "saving x: your disk quota is used up. Free some space and run the command again."),
        (errno.EROFS, "saving x: the file system is read-only. Choose another place."),
        (errno.EACCES, "saving x: Permission denied: a/b."),
    ],
)
def test_a_full_disk_is_a_failure_in_one_line(number: int, words: str) -> None:
    with pytest.raises(Failure) as raised, clear_disk_errors("saving x"):
        raise OSError(number, os.strerror(number), "a/b")
    assert str(raised.value) == words
    assert raised.value.code == 1


def test_other_errors_pass_unchanged() -> None:
    with pytest.raises(ZeroDivisionError), clear_disk_errors("saving x"):
        1 / 0  # noqa: B018


@links
def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    """Whatever a stranger's folder has at the name that is written, the file that it points to stays."""
    treasure = tmp_path / "treasure"
    treasure.write_text("mine")
    path = tmp_path / "folder" / "file"
    path.parent.mkdir()
    path.symlink_to(treasure)
    (path.parent / ".file.partial").symlink_to(treasure)  # the name of an earlier version's copy
    with pytest.raises(FileExistsError):
        open_new(path)
    with pytest.raises(OSError, match="it is a symbolic link"):
        open_own(path)
    with pytest.raises(OSError, match="it is a symbolic link"):
        open_own(path, append=True)
    write_synced(path, "theirs")
    assert not path.is_symlink()
    assert path.read_text() == "theirs"
    assert treasure.read_text() == "mine"


@links
def test_a_link_to_nothing_creates_nothing(tmp_path: Path) -> None:
    path, elsewhere = tmp_path / "link_1", tmp_path / "elsewhere"
    path.symlink_to(elsewhere)
    for opened in (open_new, open_own):
        with pytest.raises(OSError, match=r"symbolic link|File exists"):
            opened(path)
    assert unused(tmp_path, "link_{}").name == "link_2"
    assert not elsewhere.exists()


@pytest.mark.parametrize("append", [False, True])
def test_a_second_name_of_a_file_keeps_its_content(tmp_path: Path, append: bool) -> None:
    treasure, path = tmp_path / "treasure", tmp_path / "records"
    treasure.write_text("mine")
    os.link(treasure, path)
    with open_own(path, append) as file:
        file.seek(0, os.SEEK_END)
        file.write(b" and more")
    assert path.read_text() == "mine and more"
    assert treasure.read_text() == "mine"


@links
def test_a_folder_inside_ours_is_made_or_real(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "file").touch()
    assert subfolder(tmp_path, "new").is_dir()
    assert subfolder(tmp_path, "new") == tmp_path / "new"
    with pytest.raises(OSError, match="symbolic link"):
        subfolder(tmp_path, "link")
    with pytest.raises(OSError, match="not a folder"):
        subfolder(tmp_path, "file")


def test_copies_of_killed_processes_are_removed_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    path, old, new = tmp_path / "a[b]", tmp_path / ".a[b].0011.partial", tmp_path / ".a[b].2233.partial"
    for copy in (old, new):
        copy.write_text("half")
    an_hour_ago = old.stat().st_mtime - files.STALE - 1
    os.utime(old, (an_hour_ago, an_hour_ago))
    write_synced(path, "whole")
    assert sorted(tmp_path.iterdir()) == sorted([path, new])


@fifos
@pytest.mark.parametrize("read", [open_regular, open_own, read_bytes, sha256_file])
def test_what_would_block_or_never_end_is_refused(tmp_path: Path, read: Callable) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="it is a FIFO"):
        read(tmp_path / "fifo")
    with pytest.raises(OSError, match=r"it is a device|Permission denied"):
        read(Path("/dev/zero"))
    with pytest.raises(OSError, match=r"it is a folder|Is a directory"):
        read(tmp_path)


def test_a_file_larger_than_any_of_its_kind_is_not_read_into_memory(tmp_path: Path) -> None:
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match="larger than 67,108,864 bytes"):
        read_bytes(tmp_path / "sparse")
    (tmp_path / "small").write_bytes(b"12345")
    assert read_bytes(tmp_path / "small", most=5) == b"12345"
    with pytest.raises(OSError, match="larger than 4 bytes"):
        read_bytes(tmp_path / "small", most=4)


def test_one_flipped_bit_in_sealed_json_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    value = {"n_head": 4, "lr": 0.001, "name": "x", "nested": {"a": [1, 2]}}
    whole = sealed(value).encode()
    path.write_bytes(whole)
    assert read_json(path, "config", seal=True) == value
    draw = random.Random(1)
    for _ in range(500):
        flipped = bytearray(whole)
        flipped[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        try:
            found = read_json(path, "config", seal=True)
        except UserError:
            continue
        # White space may change, and so may the key of the checksum, which then is a field that nobody knows.
        assert found == value or found.keys() != value.keys()
    path.write_text(json.dumps(value))  # of an earlier version
    assert read_json(path, "config", seal=True) == value


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(), "OSError"),
        (OSError("only text."), "only text"),
        (OSError(errno.EIO, "Input/output error", "x"), "Input/output error"),
        (ValueError(), "ValueError"),
        (ValueError("two\nlines"), "two"),
    ],
)
def test_reasons_are_never_empty_and_never_none(error: Exception, said: str) -> None:
    assert reason(error) == said
    if isinstance(error, OSError):
        assert "None" not in files.disk_problem(error)
