"""The pinned versions: complete, hashed, checked by `make setup`, renewed by scripts/pins.py."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from scripts import pins

LOCKS = (pins.LOCK, pins.CUDA_LOCK)
PINNED = re.compile(r"[a-z0-9-]+==[^ ]+( ; [^\\]+)?( +--hash=sha256:[0-9a-f]{64})+")


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_line_pins_a_version_and_its_hashes(lock: Path) -> None:
    for line in lock.read_text().replace("\\\n", " ").splitlines():
        if not line.startswith(("#", "--only-binary", "--no-binary")):
            assert PINNED.fullmatch(line), line


@cache
def pinned(name: str) -> list[str]:
    """Return the versions of a package that are pinned for this platform and Python."""
    found = []
    for pin in [pin for lock in LOCKS for pin in pins.parse(lock.read_text()) if pin.startswith(f"{name}==")]:
        requirement = Requirement(pin)
        if requirement.marker is None or requirement.marker.evaluate():
            found.append(str(requirement.specifier).removeprefix("=="))
    return found


def closure() -> tuple[dict[str, list[Requirement]], set[str]]:
    """Return what the project with all extras and its build require here, and what of it is not installed."""
    project = pins.PROJECT["project"]
    extras = [requirement for extra in project["optional-dependencies"].values() for requirement in extra]
    todo = [
        Requirement(text)
        for text in [*project["dependencies"], *extras, *pins.PROJECT["build-system"]["requires"]]
        if not text.startswith("overnight[")
    ]
    found: dict[str, list[Requirement]] = {}
    missing, seen = set(), set()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        found.setdefault(name, []).append(requirement)
        if (name, frozenset(requirement.extras)) in seen:
            continue
        seen.add((name, frozenset(requirement.extras)))
        try:
            texts = requires(requirement.name) or []
        except PackageNotFoundError:
            missing.add(name)
            continue
        for needed in map(Requirement, texts):
            extras = ["", *requirement.extras]
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                todo.append(needed)
    return found, missing


def test_what_the_installed_packages_require_is_pinned_at_a_version_that_they_accept() -> None:
    found, _ = closure()
    wrong = {
        f"{requirement} is pinned at {pinned(name)}"
        for name, requirements in found.items()
        for requirement in requirements
        if len(pinned(name)) != 1 or not requirement.specifier.contains(pinned(name)[0], prereleases=True)
    }
    assert not wrong


def test_nothing_is_pinned_that_is_not_required() -> None:
    found, missing = closure()
    if missing:
        pytest.skip(f"not installed here, so what they require is unknown: {sorted(missing)}")
    extra = [
        pin
        for pin in pins.parse(pins.LOCK.read_text())
        if pin.split("==")[0] not in found and (";" not in pin or Marker(pin.split(";")[1]).evaluate())
    ]
    assert not extra


# A checkout whose packages are tiny wheels in an index of its own.


def wheel(folder: Path, name: str, version: str = "1", requires: str = "", code: str = "") -> Path:
    """Write a wheel with one module."""
    module = name.replace("-", "_")
    path = folder / f"{module}-{version}-py3-none-any.whl"
    info = f"{module}-{version}.dist-info"
    needs = f"Requires-Dist: {requires}\n" if requires else ""
    files = {
        f"{module}/__init__.py": code,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if name == "setuptools":  # a build backend with nothing but what an editable install needs
        files["setuptools/build_meta.py"] = (
            "import shutil\n"
            "def build_editable(folder, config_settings=None, metadata_directory=None):\n"
            "    return shutil.copy('overnight-1-py3-none-any.whl', folder).rpartition('/')[2]\n"
        )
    files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    folder.mkdir(exist_ok=True)
    with ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
    return path


def sha256(path: Path) -> str:
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


class Checkout:
    """The Makefile and its scripts, pins of tiny packages, and an index that has them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.files = folder, folder / "files"
        shutil.copy(pins.ROOT / "Makefile", folder)
        (folder / "scripts").mkdir()
        for script in ("pins.py", "install.py"):
            shutil.copy(pins.ROOT / "scripts" / script, folder / "scripts")
        (folder / "pyproject.toml").write_text(
            '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
            '[project]\nname = "overnight"\nversion = "1"\nrequires-python = ">=3.11"\n'
        )
        wheel(folder, "overnight", requires="tiny")
        for name in ("setuptools", "tiny", "nvidia-cublas"):
            wheel(self.files, name)
        wheel(self.files, "torch", requires="nvidia-cublas==1")
        cpu = wheel(folder / "local", "torch", "1+cpu")
        files = {path.name.split("-")[0].replace("_", "-"): {sha256(path)} for path in self.files.iterdir()}
        files["torch"].add(sha256(cpu))
        locked = {f"{name}==1": hashes for name, hashes in files.items()}
        cuda = {pin: locked.pop(pin) for pin in list(locked) if pins.CUDA.match(pin)}
        (folder / "constraints.txt").write_text("--only-binary :all:\n" + pins.render(locked))
        (folder / "constraints-cuda.txt").write_text(pins.render(cuda))

    def setup(self, find_links: str = "") -> subprocess.CompletedProcess[str]:
        """Run `make setup`, with pip configured for the index only, which lists the hashes of what it has."""
        for path in self.files.iterdir():
            page = self.folder / "index" / path.name.split("-")[0].replace("_", "-") / "index.html"
            page.parent.mkdir(parents=True, exist_ok=True)
            link = f"{path.as_uri()}#{sha256(path).replace(':', '=')}"
            page.write_text(f'<a href="{link}">{path.name}</a>')
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PIP_", "MAKE", "MFLAGS", "PYTHONPATH"))
        }
        environment |= {
            "LC_ALL": "C",
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_INDEX_URL": (self.folder / "index").as_uri(),
            "PIP_FIND_LINKS": find_links,
        }
        return subprocess.run(
            ["make", "setup", f"PYTHON={sys.executable}"],
            cwd=self.folder, env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    def installed(self) -> set[str]:
        """Return the installed packages, as name-version."""
        found = self.folder.glob(".venv/lib/python*/site-packages/*.dist-info")
        return {path.name.removesuffix(".dist-info") for path in found}

    @property
    def ready(self) -> bool:
        return (self.folder / ".venv" / ".ready").exists()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    if shutil.which("make") is None:
        pytest.skip("needs make")
    return Checkout(tmp_path)


def test_make_refuses_a_changed_package_and_starts_again_with_the_right_one(checkout: Checkout) -> None:
    for name in ("setuptools", "tiny", "nvidia-cublas"):
        path = next(checkout.files.glob(name.replace("-", "_") + "-*"))
        right = path.read_bytes()
        wheel(checkout.files, name, code="print('changed')")
        refused = checkout.setup()
        assert refused.returncode != 0, name
        assert "DO NOT MATCH THE HASHES" in refused.stderr, name
        assert path.name.removesuffix("-py3-none-any.whl") not in checkout.installed()
        assert not checkout.ready
        path.write_bytes(right)
    done = checkout.setup()
    assert done.returncode == 0, done.stderr
    assert {"setuptools-1", "torch-1", "tiny-1", "nvidia_cublas-1", "overnight-1"} <= checkout.installed()
    assert checkout.ready
    assert "Nothing to be done" in checkout.setup().stdout


def test_a_local_build_of_torch_is_preferred_and_brings_no_cuda_libraries(checkout: Checkout) -> None:
    done = checkout.setup(find_links=str(checkout.folder / "local"))
    assert done.returncode == 0, done.stderr
    assert "torch-1+cpu" in checkout.installed()
    assert "nvidia_cublas-1" not in checkout.installed()


def test_make_refuses_a_local_build_of_torch_that_was_changed(checkout: Checkout) -> None:
    wheel(checkout.folder / "local", "torch", "1+cpu", code="print('changed')")
    refused = checkout.setup(find_links=str(checkout.folder / "local"))
    assert refused.returncode != 0
    assert "DO NOT MATCH THE HASHES" in refused.stderr
    assert not any(name.startswith("torch-") for name in checkout.installed())


def test_make_fails_if_a_required_package_is_not_pinned(checkout: Checkout) -> None:
    wheel(checkout.folder, "overnight", requires="forgotten")
    failed = checkout.setup()
    assert failed.returncode != 0
    assert "overnight 1 requires forgotten" in failed.stdout
    assert not checkout.ready


# scripts/pins.py, with a stand-in for uv that answers the same whatever it is asked.

A, B, C = (f"sha256:{letter * 64}" for letter in "abc")


def renew(folder: Path, resolved: pins.Pins, *options: str) -> subprocess.CompletedProcess[str]:
    """Run scripts/pins.py of a checkout; the index has `resolved`."""
    (folder / "resolved.txt").write_text(pins.render(resolved))
    uv = folder / "bin" / "uv"
    uv.parent.mkdir(exist_ok=True)
    uv.write_text(
        f"#!{sys.executable}\nimport shutil, sys\n"
        "shutil.copy('resolved.txt', sys.argv[sys.argv.index('--output-file') + 1])\n"
    )
    uv.chmod(0o755)
    settings = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": ""}
    return subprocess.run(
        [sys.executable, "scripts/pins.py", *options],
        cwd=folder, capture_output=True, text=True, timeout=120,
        env=os.environ | settings | {"PATH": f"{uv.parent}{os.pathsep}{os.environ['PATH']}"},
    )  # fmt: skip


@pytest.mark.skipif(os.name != "posix", reason="the stand-in is a script with a #! line")
def test_the_script_names_each_difference_and_writes_only_if_it_should(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    lock, cuda_lock = tmp_path / "constraints.txt", tmp_path / "constraints-cuda.txt"
    lock.write_text(pins.render({"gone==1": {A}, "same==1": {A}, "tiny==1": {A, B}, "torch==1": {C}}))
    resolved = {"new==1": {A}, "same==1": {A}, "tiny==1": {A, C}, "torch==1": {A}, "triton==1": {B}}
    before = lock.read_text(), cuda_lock.read_text()
    checked = renew(checkout.folder, resolved, "--check")
    assert checked.returncode == 1, checked.stderr
    lines = checked.stdout.splitlines()
    assert lines[0].startswith(f"torch==1: {C} is kept")
    assert lines[1:] == [
        "gone==1: no longer resolved to",
        "new==1: missing here",
        "nvidia-cublas==1: no longer resolved to",
        f"tiny==1: {B} is not on the index",
        f"tiny==1: {C} is on the index, but missing here",
        f"torch==1: {A} is on the index, but missing here",
        "triton==1: missing here",
    ]
    assert (lock.read_text(), cuda_lock.read_text()) == before

    assert renew(checkout.folder, resolved).returncode == 0
    resolved["torch==1"] = {A, C}
    assert pins.parse(cuda_lock.read_text()) == {"triton==1": resolved.pop("triton==1")}
    assert pins.parse(lock.read_text()) == resolved
    assert renew(checkout.folder, resolved | {"triton==1": {B}}, "--check").returncode == 0


def test_the_files_are_as_the_script_writes_them() -> None:
    for lock in LOCKS:
        text = lock.read_text()
        assert text.endswith(pins.render(pins.parse(text)))


def test_the_build_requires_a_range_that_holds_the_pinned_setuptools() -> None:
    requirement = Requirement(pins.PROJECT["build-system"]["requires"][0])
    assert requirement.name == "setuptools"
    assert any(clause.operator in ("<", "<=", "==", "~=") for clause in requirement.specifier)
    assert requirement.specifier.contains(pinned("setuptools")[0])
