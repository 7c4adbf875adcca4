"""The launcher's folder: private, gone at its end, and after a kill gone when the next launcher begins."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.launching import FOREVER, SMALL
from tests.violence import command, kill, wait_for_step

from overnight import launcher_folder as folders
from overnight.launcher_folder import LAUNCHER, launcher_folder, launcher_is_gone

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")

LAUNCH = """
import sys, time
from overnight.launcher_folder import launcher_folder
with launcher_folder(lambda folder: (folder / 'word').touch()) as folder:
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nobody's real cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "overnight"


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)


def launcher() -> tuple[subprocess.Popen, Path]:
    """Another process that has a folder."""
    process = subprocess.Popen([sys.executable, "-c", LAUNCH], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    return process, Path(process.stdout.readline().strip())


def test_it_is_private_and_gone_at_the_end(cache: Path) -> None:
    with launcher_folder(lambda folder: (folder / "word").touch()) as folder:
        assert folder.parent == cache
        assert folder.stat().st_mode & 0o777 == 0o700
        assert (folder / "word").exists()
        with launcher_folder(lambda folder: None) as other:
            assert folder.exists()
            assert other != folder
    assert list(cache.iterdir()) == []


def test_one_of_a_killed_launcher_is_removed_by_the_next(cache: Path) -> None:
    """Also while the dead one is a zombie, which nobody has waited for yet; not one of a launcher that lives,
    or of another machine."""
    (alive, kept), (dead, left) = launcher(), launcher()
    far = left.with_name("launch-elsewhere-1-00")
    far.mkdir()
    try:
        assert not launcher_is_gone(left)
        dead.kill()
        os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)
        assert launcher_is_gone(left)
        assert not launcher_is_gone(kept)
        with launcher_folder(lambda folder: None):
            assert not left.exists()
            assert kept.exists()
            assert far.exists()
    finally:
        alive.kill()
        alive.communicate()
        dead.communicate()


def test_where_a_file_system_has_no_locks_the_process_itself_is_looked_for(no_locks: None) -> None:
    """Its number and when it began: a number may belong to another process by now."""
    process, folder = launcher()
    try:
        assert not launcher_is_gone(folder)
        (folder / LAUNCHER).write_text(f"{process.pid} 1")
        assert launcher_is_gone(folder)
    finally:
        process.kill()
        process.communicate()


def test_a_folder_without_its_file_says_nothing(tmp_path: Path) -> None:
    """Somebody cleaned up, or it is being made."""
    assert not launcher_is_gone(tmp_path)
    assert not launcher_is_gone(tmp_path / "missing")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_without_room_in_the_cache_it_is_made_in_the_temporary_directory(
    number: int, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path) -> None:
        if folder.parent == cache:
            raise OSError(number, os.strerror(number))

    (tmp_path / "temporary").mkdir(mode=0o700)
    monkeypatch.setattr(folders, "temporary_folder", lambda: tmp_path / "temporary")
    with launcher_folder(full) as folder:
        assert folder.parent == tmp_path / "temporary"
    assert list(cache.iterdir()) == []


def test_without_file_locks_in_the_cache_it_is_made_in_the_temporary_directory(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's FileStore needs them."""

    def refuse(folder: Path) -> None:
        if folder.parent == cache:
            raise OSError(errno.ENOLCK, "No locks available")

    (tmp_path / "temporary").mkdir(mode=0o700)
    monkeypatch.setattr(folders, "temporary_folder", lambda: tmp_path / "temporary")
    monkeypatch.setattr(folders, "check_locks", refuse)
    with launcher_folder(lambda folder: None) as folder:
        assert folder.parent == tmp_path / "temporary"


def test_a_train_leaves_nothing_behind(cache: Path, tmp_path: Path, data_folder: Path) -> None:
    """Neither in the temporary directory nor in the cache: the second removes what the killed first left."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    temporary.chmod(0o1777)
    chosen = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")  # by an earlier test of this process
    environment = {name: value for name, value in os.environ.items() if name not in chosen}
    environment["TMPDIR"] = str(temporary)
    for number, whom in enumerate(("everything", "")):
        run = tmp_path / f"run{number}"
        options = ["--data", data_folder, "--run", run, *SMALL, *FOREVER, "--processes", 2]
        line = command("train", "shakespeare-cpu", *options)
        with open(os.devnull, "wb") as nowhere:
            process = subprocess.Popen(line, env=environment, stdout=nowhere, stderr=nowhere)
        wait_for_step(run, 5, process)
        if whom:
            kill(process, whom)
        else:
            process.send_signal(signal.SIGTERM)
        process.wait(120)
    assert {path.name for path in cache.iterdir()} == {"inductor", "triton", "temporary"}
    assert list(temporary.iterdir()) == list((cache / "temporary").iterdir()) == []
