"""Files: whole or as they were; JSON and disk errors in a line."""

import errno
import hashlib
import os
from pathlib import Path

import pytest

from overnight.errors import Failure, UserError
from overnight.files import clear_disk_errors, read_json, sha256_file, to_json, write_synced


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
    with pytest.raises(UserError, match=r"config.*is damaged.*Make it anew"):
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
