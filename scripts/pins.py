"""Write constraints.txt and constraints-cuda.txt: what `make` installs, with the hash of each file.

    python scripts/pins.py                    keep the versions, read their hashes from the index again
    python scripts/pins.py --upgrade          the newest versions that pyproject.toml allows, except of torch
    python scripts/pins.py --torch 2.14.1     another version of torch, the others as they are
    python scripts/pins.py --check            write nothing; print one line per difference and exit with 1

uv (`pip install uv`) resolves for every platform and Python at once, from metadata: it downloads no wheels if
the index serves their metadata. The index is the one that pip is configured for.
"""

import argparse
import ast
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK, CUDA_LOCK = ROOT / "constraints.txt", ROOT / "constraints-cuda.txt"
CUDA = re.compile(r"(cuda-|nvidia-|triton\b)")
# Everything else is installed from wheels, so no other package runs code while it is installed.
WITHOUT_WHEELS = ("rouge-score", "sqlitedict", "word2number")
COMPILE = ["pip", "compile", "--quiet", "--no-config", "--universal"]
COMPILE += ["--generate-hashes", "--no-annotate", "--no-header"]

HEADER = """\
# Written by scripts/pins.py. Every version that `make` installs, on any platform, with the hash of each file.
# The CUDA libraries, which only some builds of torch require, are in constraints-cuda.txt.
"""
CUDA_HEADER = """\
# Written by scripts/pins.py. What the CUDA builds of torch require besides constraints.txt.
"""

Pins = dict[str, set[str]]  # "name==version ; marker" -> "sha256:..." of its files


def parse(text: str) -> Pins:
    """Return the requirements of a lock file and their hashes."""
    pins = {}
    for line in text.replace("\\\n", " ").splitlines():
        if "==" in line and not line.startswith(("#", "-")):
            requirement, *hashes = line.split("--hash=")
            pins[requirement.strip()] = {h.strip() for h in hashes}
    return pins


def render(pins: Pins) -> str:
    """Return the lines that `parse` reads, sorted."""
    return "".join(
        " \\\n    ".join([requirement, *(f"--hash={h}" for h in sorted(pins[requirement]))]) + "\n"
        for requirement in sorted(pins)
    )


def pip_settings() -> dict[str, list[str]]:
    """Return pip's index-url, extra-index-url and find-links, from its files and environment."""
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
    ).stdout
    settings: dict[str, list[str]] = {}
    for section in ("global", "install", ":env:"):  # the later one has precedence
        for name, value in re.findall(rf"^{section}\.([a-z-]+)=(.*)$", listing, re.MULTILINE):
            settings[name] = ast.literal_eval(value).split()
    return settings


def uv(requirements: str, *options: str, preferred: str = "", required: bool = True) -> Pins:
    """Return what uv resolves `requirements` to, with the versions in `preferred` where they fit."""
    program = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if program is None:
        sys.exit("scripts/pins.py needs uv. Install it: pip install uv")
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "pins.txt")
        output.write_text(preferred)
        command = [program, *COMPILE, "--python-version", oldest, "--output-file", str(output), *options, "-"]
        errors = None if required else subprocess.DEVNULL
        code = subprocess.run(
            command, input=requirements, text=True, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=errors
        ).returncode
        if code and required:
            sys.exit("uv could not resolve the requirements; nothing was written")
        return {} if code else parse(output.read_text())


def other_builds(torch: str, settings: dict[str, list[str]]) -> set[str]:
    """Return the hashes of builds of torch (2.13.0+cpu, say) in pip's extra indexes and find-links."""
    hashes: set[str] = set()
    options = [["--default-index", url] for url in settings.get("extra-index-url", [])]
    for place in settings.get("find-links", []):
        if Path(place).is_dir():  # uv does not hash local files
            for wheel in Path(place).glob(f"torch-{torch}[+-]*.whl"):
                with wheel.open("rb") as file:
                    hashes.add("sha256:" + hashlib.file_digest(file, "sha256").hexdigest())
        else:
            options.append(["--no-index", "--find-links", place])
    for option in options:
        hashes.update(*uv(f"torch=={torch}", "--no-deps", *option, required=False).values())
    return hashes


def resolve(present: Pins, torch: str, upgrade: bool) -> Pins:
    """Return all pins of the `dev` extra and of the build, with torch at one version."""
    settings = pip_settings()
    options = ["pyproject.toml", "--extra", "dev", "--only-binary", ":all:"]
    options += [word for name in WITHOUT_WHEELS for word in ("--no-binary", name)]
    if "index-url" in settings:
        options += ["--default-index", *settings["index-url"]]
    # Preferred without the hashes: uv would copy them instead of asking the index.
    preferred = "" if upgrade else "\n".join(present)
    requirement = f"torch=={torch}"
    build = PROJECT["build-system"]["requires"]
    pins = uv("\n".join([*build, requirement]), *options, preferred=preferred)
    builds = [pins.pop(pin) for pin in list(pins) if pin.startswith("torch==")]
    pins[requirement] = set().union(*builds, other_builds(torch, settings))
    # Not every machine is configured for all the places that have builds of torch.
    for kept in sorted(present.get(requirement, set()) - pins[requirement]):
        print(f"{requirement}: {kept} is kept, although pip is not configured for any place that has it")
        pins[requirement].add(kept)
    return pins


def differences(present: Pins, renewed: Pins) -> list[str]:
    """Return one line for each requirement and hash that only one of the two has."""
    lines = [f"{pin}: no longer resolved to" for pin in present.keys() - renewed.keys()]
    for pin, hashes in renewed.items():
        if pin not in present:
            lines.append(f"{pin}: missing here")
            continue
        lines += [f"{pin}: {h} is not on the index" for h in present[pin] - hashes]
        lines += [f"{pin}: {h} is on the index, but missing here" for h in hashes - present[pin]]
    return sorted(lines)


def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--upgrade", action="store_true", help="newest versions instead of the present ones")
    parser.add_argument("--torch", metavar="VERSION", help="version of torch (default: the present one)")
    parser.add_argument("--check", action="store_true", help="compare only; exit code 1 if anything differs")
    arguments = parser.parse_args()

    present = parse(LOCK.read_text()) | (parse(CUDA_LOCK.read_text()) if CUDA_LOCK.exists() else {})
    torch = arguments.torch or next(pin.split("==")[1] for pin in present if pin.startswith("torch=="))
    renewed = resolve(present, torch, arguments.upgrade)
    changes = differences(present, renewed)
    print("\n".join(changes) if changes else "No difference.")
    if arguments.check:
        return 1 if changes else 0
    build_options = "--only-binary :all:\n" + "".join(f"--no-binary {name}\n" for name in WITHOUT_WHEELS)
    cuda = {pin: hashes for pin, hashes in renewed.items() if CUDA.match(pin)}
    LOCK.write_text(HEADER + build_options + render({p: h for p, h in renewed.items() if p not in cuda}))
    CUDA_LOCK.write_text(CUDA_HEADER + "--only-binary :all:\n" + render(cuda))
    return 0


if __name__ == "__main__":
    sys.exit(main())
