"""Which network interface the ranks use: gloo and NCCL listen on that one only."""

import contextlib
import os
import socket
import struct
from pathlib import Path

SIOCGIFADDR = 0x8915  # Linux, linux/sockios.h


def listen_only_on(interface: str) -> None:
    """Have gloo and NCCL listen on this interface, where the user did not choose another one."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={interface}")  # = is for that name, not all it begins


def listen_only_here() -> None:
    """Have gloo and NCCL listen on the loopback interface, which no other machine reaches."""
    names = [name for _, name in socket.if_nameindex()]
    if name := next((name for name in ("lo", "lo0") if name in names), ""):
        listen_only_on(name)


def interface_of(address: str) -> str:
    """The name of the interface with this address; "" where that cannot be found out."""
    for _, name in socket.if_nameindex():
        if address in addresses(name) or (name == "lo" and address.startswith("127.")):
            return name
    return ""


def addresses(interface: str) -> list[str]:
    """An interface's first IPv4 address and its IPv6 addresses, as far as the system (Linux) tells."""
    found = []
    with contextlib.suppress(OSError, ImportError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_:
        import fcntl

        reply = fcntl.ioctl(any_, SIOCGIFADDR, struct.pack("256s", interface.encode()[:15]))
        found.append(socket.inet_ntoa(reply[20:24]))
    with contextlib.suppress(OSError):
        lines = [line.split() for line in Path("/proc/net/if_inet6").read_text().splitlines()]
        found += [
            socket.inet_ntop(socket.AF_INET6, bytes.fromhex(line[0]))
            for line in lines
            if line[5] == interface
        ]
    return found
