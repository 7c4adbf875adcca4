"""`overnight doctor`."""

from dataclasses import dataclass

from overnight.arguments import parse
from overnight.verbs import Device


@dataclass(frozen=True)
class Doctor:
    """What this machine can do, and what would go wrong; exit code 1 if something would."""

    device: Device = "auto"
    """The device to look at."""


def run(arguments: list[str]) -> int:
    wanted = parse(Doctor, "overnight doctor", arguments)

    from overnight.doctor import examine

    return examine(wanted.device)
