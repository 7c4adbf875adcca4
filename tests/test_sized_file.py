"""Files whose reads are bounded, whatever the system says of their size."""

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import pytest

from overnight import sized_file
from overnight.files import open_regular, read_bytes, sha256_file

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")
READS: list[Callable[[IO[bytes]], object]] = [
    lambda file: file.read(), lambda file: file.read(7), lambda file: file.readline(),
    lambda file: file.readinto(bytearray(100)), list,
]  # fmt: skip


@pytest.mark.parametrize("read", READS)
def test_a_file_with_more_to_read_than_its_size_is_refused(
    read: Callable[[IO[bytes]], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789\n")
    real = os.fstat

    def of_size_0(descriptor: int) -> SimpleNamespace:
        found = real(descriptor)
        return SimpleNamespace(st_size=0, st_mode=found.st_mode, st_dev=found.st_dev, st_blksize=4096)

    monkeypatch.setattr(sized_file.os, "fstat", of_size_0)
    with open_regular(path) as file, pytest.raises(OSError, match="more to read than its 0 bytes") as raised:
        read(file)
    assert raised.value.errno == errno.EINVAL
    assert raised.value.filename == str(path)


@linux
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("read", [sha256_file, lambda path: read_bytes(path, most=1 << 60)])
def test_endless_files_of_the_system_are_refused(
    read: Callable, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not known:  # mounted elsewhere
        monkeypatch.setattr(sized_file, "system_devices", frozenset)
    with pytest.raises(OSError, match="file of the system" if known else "more to read than its 0 bytes"):
        read(Path("/proc/self/pagemap"))


def test_a_file_may_grow_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one\n")
    with open_regular(path) as file:
        assert list(file) == [b"one\n"]
        with open(path, "ab") as more:
            more.write(b"two\n")
        assert file.read() == b"two\n"


def test_no_more_than_the_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    with open_regular(path, most=5) as file:
        assert file.read() == b"12345"
        with open(path, "ab") as more:
            more.write(b"6")
        with pytest.raises(OSError, match="larger than 5 bytes"):
            file.read()
    with pytest.raises(OSError, match="larger than 5 bytes"):
        sha256_file(path, most=5)
