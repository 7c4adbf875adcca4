"""Private folders: made so that no other user can change what is in them, and refused where one can."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.sockets import poisons

from overnight import private
from overnight.errors import UserError
from overnight.private import cache_folder, private_folder, use_private_folders

pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows has access lists")
STRANGER = 65534  # nobody
two_users = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="acts as a second user, which needs root"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Nobody's real cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for variable in private.CACHES:
        monkeypatch.delenv(variable, raising=False)
    functions = (private.made_temporary, private.shared_temporary)
    for function in functions:
        function.cache_clear()
    yield tmp_path / "cache" / "overnight"
    for function in functions:
        function.cache_clear()


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder as /tmp is: anybody makes names there, nobody takes another's away."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    for parent in folder.parents:  # pytest's own are private
        if not parent.stat().st_mode & 0o005:
            parent.chmod(parent.stat().st_mode | 0o055)
    return folder


def as_stranger(work: Callable[[], object]) -> None:
    """Do something as another user."""
    child = os.fork()
    if child == 0:
        try:
            os.setgid(STRANGER)
            os.setuid(STRANGER)
            work()
        except BaseException as error:
            os.write(2, f"{error}\n".encode())
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def test_the_cache_folder_is_made_for_its_owner_only(cache: Path) -> None:
    before = os.umask(0)
    try:
        assert cache_folder() == cache
        use_private_folders()
    finally:
        os.umask(before)
    assert mode(cache) == mode(cache / "inductor") == mode(cache / "triton") == 0o700
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(cache / "inductor")
    assert os.environ["TRITON_CACHE_DIR"] == str(cache / "triton")


def test_libraries_have_private_temporary_files(shared: Path, cache: Path, tmp_path: Path) -> None:
    """And Overnight still finds the shared directory, for when the cache's disk is full."""
    use(shared)
    use_private_folders()
    assert Path(tempfile.gettempdir()) == Path(os.environ["TMPDIR"]) == cache / "temporary"
    assert private.temporary_folder().parent == shared


def test_a_private_temporary_directory_of_the_users_stays(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir(mode=0o700)
    use(tmp_path / "job")
    use_private_folders()
    assert tempfile.gettempdir() == os.environ["TMPDIR"] == str(tmp_path / "job")


@pytest.mark.parametrize("variable", ["TORCHINDUCTOR_CACHE_DIR", "XDG_CACHE_HOME", "TMPDIR"])
def test_what_is_checked_through_a_link_is_what_is_used(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever owns the link can turn it to another folder afterwards."""
    (tmp_path / "own").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("own")
    monkeypatch.setenv(variable, str(tmp_path / "link"))
    if variable == "TMPDIR":
        use(tmp_path / "link")
    use_private_folders()
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "TMPDIR"):
        assert os.environ[name] == os.path.realpath(os.environ[name])


def test_forgotten_temporary_files_are_removed(shared: Path, cache: Path) -> None:
    use(shared)
    for name in ("forgotten", "torchinductor_user", "used"):
        (cache / "temporary" / name / "inside").mkdir(parents=True)
        (cache / "temporary").chmod(0o700)
        if name != "used":
            os.utime(cache / "temporary" / name, (0, 0))
    (cache / "temporary" / "link").symlink_to(shared)
    os.utime(cache / "temporary" / "link", (0, 0), follow_symlinks=False)
    use_private_folders()
    assert {path.name for path in (cache / "temporary").iterdir()} == {"torchinductor_user", "used"}
    assert shared.exists()


def use(folder: Path) -> None:
    """Have it as the temporary directory (`same_folders` undoes that)."""
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)


def test_a_cache_folder_of_a_loose_umask_is_closed(cache: Path) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o775)
    assert cache_folder() == cache
    assert mode(cache) == 0o700


@pytest.mark.parametrize("name", ["inductor", "triton"])
@pytest.mark.parametrize("how", ["open", "link", "file"])
def test_what_others_could_have_filled_is_not_used(name: str, how: str, cache: Path, tmp_path: Path) -> None:
    cache.mkdir(parents=True)
    if how == "open":
        (cache / name).mkdir()
        (cache / name).chmod(0o777)
    elif how == "link":
        (tmp_path / "elsewhere").mkdir()
        (cache / name).symlink_to(tmp_path / "elsewhere")
    else:
        (cache / name).touch()
    used = private.cache_folder_for(name)
    assert cache not in used.parents
    assert mode(used) == mode(used.parent) == 0o700


@two_users
@pytest.mark.parametrize("what", ["base", "folder", "link"])
def test_a_name_that_another_user_made_first_is_not_used(
    what: str, shared: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared if what != "base" else shared / "cache"))
    planted = shared / ("cache" if what == "base" else "overnight")
    if what == "link":
        mine = shared.parent / "mine"
        mine.mkdir(mode=0o700)
        as_stranger(lambda: planted.symlink_to(mine))
    else:
        as_stranger(lambda: planted.mkdir(mode=0o777))
    used = cache_folder()
    assert shared not in used.parents
    assert mode(used) == 0o700
    assert used == cache_folder()
    assert capfd.readouterr().err.count("Caches go to the temporary folder") == 1


def test_a_folder_in_one_that_others_can_write_to_is_not_private(tmp_path: Path) -> None:
    """It can be renamed away, and another one put in its place; in a sticky folder (/tmp) it cannot."""
    around = tmp_path / "around"
    around.mkdir()
    around.chmod(0o777)
    with pytest.raises(PermissionError, match="can write to"):
        private_folder(around / "folder")
    around.chmod(0o1777)
    assert private_folder(around / "folder") == around / "folder"


@pytest.mark.parametrize("variable", private.CACHES)
@pytest.mark.parametrize("permissions", [0o777, 0o770, 0o702, 0o1777])
def test_a_chosen_folder_that_others_can_write_to_is_refused(
    variable: str, permissions: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, link = tmp_path / "chosen", tmp_path / "link"
    folder.mkdir()
    folder.chmod(permissions)
    link.symlink_to(folder)
    for path in (folder, link):
        monkeypatch.setenv(variable, str(path))
        with pytest.raises(UserError) as refused:
            use_private_folders()
        assert f"{variable} is {path}, and torch.compile runs what it finds there" in str(refused.value)
        assert len(str(refused.value).splitlines()) == 2
    folder.chmod(0o755)
    use_private_folders()
    assert os.environ[variable] == str(folder)


@two_users
def test_a_chosen_folder_of_another_user_is_refused(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = shared / "planted"
    as_stranger(lambda: planted.mkdir(mode=0o755))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(planted))
    with pytest.raises(UserError, match=f"it belongs to user {STRANGER}"):
        use_private_folders()


@two_users
def test_a_chosen_folder_of_the_administrator_is_used(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shared / "installed"
    folder.mkdir(mode=0o755)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder))
    as_stranger(use_private_folders)


def test_a_chosen_folder_that_is_missing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "a" / "b"))
    use_private_folders()
    assert mode(tmp_path / "a" / "b") == 0o700


def test_a_train_with_such_a_folder_is_wrong_input(
    train: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "open"))
    for more in ((), ("--processes", 2)):
        outcome = train(tmp_path / "run", *more)
        assert (outcome.code, len(outcome.err.splitlines())) == (2, 2), outcome.err


HOMELESS = "from overnight.private import cache_folder; print(cache_folder()); (cache_folder() / 'a').touch()"


@pytest.mark.parametrize("why", ["no home", "a file", "not writable"])
def test_without_a_cache_folder_a_temporary_one_is_used_and_removed(why: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "temporary").mkdir()
    home = {"no home": "relative", "a file": tmp_path / "file", "not writable": "/proc/sys"}[why]
    environment = os.environ | {"XDG_CACHE_HOME": str(home), "TMPDIR": str(tmp_path / "temporary")}
    program = HOMELESS
    if why == "no home":
        program = f"from pathlib import Path\ndef home(): raise RuntimeError\nPath.home = home\n{HOMELESS}"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    used = Path(done.stdout.strip())
    assert used.parent == tmp_path / "temporary"
    assert done.stderr.count("\n") == 1
    assert not used.exists()


COMPILE = """
import torch
from overnight import world
with world.connect("cpu"):
    def f(x): return x.sin() * 2 + x.cos()
    torch.compile(f)(torch.ones(64)).sum()
"""


@two_users
@pytest.mark.skipif(sys.platform != "linux", reason="compiles")
def test_what_another_user_planted_for_torch_compile_is_not_loaded(shared: Path, tmp_path: Path) -> None:
    """The stranger has the same torch, so the same names: each file that a compilation leaves is replaced by
    a pickle that leaves a mark."""
    planted, mark = shared / "torchinductor_root", tmp_path / "mark"
    environment = {key: value for key, value in os.environ.items() if key not in private.CACHES}
    environment |= {"TMPDIR": str(shared), "XDG_CACHE_HOME": str(tmp_path / "own"), "LOGNAME": "root"}

    def compiled(**more: str) -> None:
        line = [sys.executable, "-c", COMPILE]
        done = subprocess.run(line, env=environment | more, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    compiled(TORCHINDUCTOR_CACHE_DIR=str(planted))
    files = [path for path in planted.rglob("*") if path.is_file()]
    assert files
    for path in files:
        path.write_bytes(poisons(mark)[0])
    shutil.copytree(planted, shared / "overnight" / "inductor")
    shutil.copytree(planted, shared / "overnight" / "temporary" / planted.name)
    for path in shared.rglob("*"):
        os.chown(path, STRANGER, STRANGER)
        path.chmod(0o777)
    compiled()
    compiled(XDG_CACHE_HOME=str(shared))
    assert not mark.exists()
    assert {path.name for path in shared.iterdir()} == {planted.name, "overnight"}, "nothing is left there"
