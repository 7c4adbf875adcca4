"""Install this project and what constraints.txt pins into the environment of the Python that runs this.

`make setup` runs it in .venv. Whatever is downloaded is installed only if its hash is in constraints.txt or
constraints-cuda.txt. Nothing is resolved: `pip check` tells at the end if something is missing.
"""

import subprocess
import sys
import tempfile
from importlib.metadata import requires
from pathlib import Path

from pins import CUDA, CUDA_LOCK, LOCK, ROOT, parse, render

PIP = [sys.executable, "-m", "pip"]
# With build isolation, pip would download what builds a package without checking a hash.
INSTALL = [*PIP, "install", "--quiet", "--no-deps", "--no-build-isolation", "--use-pep517"]


def run(*command: str) -> None:
    """Run a command in the project's folder; end with its exit code if it fails."""
    code = subprocess.run(command, cwd=ROOT).returncode
    if code:
        sys.exit(code)


def install_one(name: str, *options: str) -> None:
    """Install one of the packages in constraints.txt."""
    pins = {pin: hashes for pin, hashes in parse(LOCK.read_text()).items() if pin.startswith(f"{name}==")}
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder, "requirements.txt")
        requirements.write_text("--only-binary :all:\n" + render(pins))
        run(*INSTALL, "--require-hashes", *options, "--requirement", str(requirements))


def torch_is_local() -> bool:
    """Return whether pip's find-links has a build of the pinned torch, for CPUs say."""
    pin = next((pin for pin in parse(LOCK.read_text()) if pin.startswith("torch==")), "torch")
    return not subprocess.run([*INSTALL, "--dry-run", "--no-index", pin], capture_output=True).returncode


def main() -> None:
    install_one("setuptools")  # builds the packages that have no wheels, and this one
    if torch_is_local():  # pip would prefer the index, which lists a hash
        install_one("torch", "--no-index")
    run(*INSTALL, "--require-hashes", "--requirement", str(LOCK))
    if any(CUDA.match(requirement) for requirement in requires("torch") or []):
        run(*INSTALL, "--require-hashes", "--requirement", str(CUDA_LOCK))
    run(*INSTALL, "--editable", ".")
    if subprocess.run([*PIP, "check"]).returncode:
        sys.exit("The installed packages do not fit together. Start from nothing: make clean setup")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
