"""Who can reach the ranks: gloo and NCCL listen on one network interface only, gloo until all have met."""

import contextlib
import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

SIOCGIFADDR = 0x8915  # Linux, linux/sockios.h
SO_ATTACH_FILTER = 26  # asm-generic/socket.h
DROP_ALL = struct.pack("HBBI", 0x06, 0, 0, 0)  # linux/filter.h: a program that returns 0, keep no bytes


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


@contextlib.contextmanager
def closed_afterwards() -> Iterator[None]:
    """After the `with`, refuse further connections to the sockets that began to listen in it.

    gloo listens until the process ends, keeps every connection that a stranger opens, and aborts when it runs
    out of descriptors. Linux therefore drops all packets to these sockets; existing connections stay.
    """
    before = set(listening())
    yield
    program = ctypes.create_string_buffer(DROP_ALL)
    filter_ = struct.pack("HP", 1, ctypes.addressof(program))
    for descriptor in listening():
        if descriptor not in before:
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as one:
                one.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, filter_)


def listening() -> list[int]:
    """The descriptors of this process on which it accepts TCP connections; none without /proc."""
    found = []
    with contextlib.suppress(OSError):
        for descriptor in map(int, os.listdir("/proc/self/fd")):
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as one:
                tcp = one.family in (socket.AF_INET, socket.AF_INET6)
                if tcp and one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    found.append(descriptor)
    return found
