"""What a stranger finds of a process's sockets, and what one sends to them."""

import base64
import os
import pickle
import socket
import struct
from pathlib import Path

from tests.violence import children

Listener = tuple[str, str, int]
"""Kind (tcp, udp, unix), address, port."""


class Malicious:
    """Makes a folder when its pickle is loaded."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


def tree(pid: int) -> list[int]:
    """A process and all that it started, directly or not."""
    return [pid, *(grandchild for child in children(pid) for grandchild in tree(child))]


def inodes(pid: int) -> set[str]:
    found = set()
    for path in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            kind, _, inode = os.readlink(path).partition(":")
        except OSError:  # closed meanwhile
            continue
        if kind == "socket":
            found.add(inode.strip("[]"))
    return found


def listeners(pid: int) -> list[Listener]:
    """Where a process and its descendants can be reached: TCP and UDP ports, and Unix sockets that have no
    place in the file system or accept connections."""
    ours = set[str]().union(*map(inodes, tree(pid)))
    found = []
    for kind, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6), ("udp", socket.AF_INET)):
        for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]:
            words = line.split()
            if words[9] in ours and (kind == "udp" or words[3] == "0A"):
                address, port = words[1].split(":")
                found.append((kind[:3], address_of(address, family), int(port, 16)))
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        words = line.split()
        accepts = int(words[3], 16) & 0x10000
        if words[6] in ours and (accepts or words[7:]):
            found.append(("unix", " ".join(words[7:]), 0))
    return sorted(found)


def address_of(text: str, family: int) -> str:
    """An address as /proc has it: words of four bytes, in the machine's order."""
    words = [text[at : at + 8] for at in range(0, len(text), 8)]
    return socket.inet_ntop(family, b"".join(struct.pack("=I", int(word, 16)) for word in words))


def poisons(mark: Path) -> list[bytes]:
    """Pickles that leave a mark, as rendezvous and collectives have carried them."""
    plain = pickle.dumps(Malicious(mark), 2)
    return [plain, base64.b64encode(plain)]


def store_messages(keys: list[str], mark: Path) -> list[bytes]:
    """Pickles for a TCPStore: what its client sends to set a key."""

    def framed(content: bytes) -> bytes:
        return struct.pack("=Q", len(content)) + content

    hello = b"\0" + struct.pack("=I", 0x3C85F7CE)  # TCPStoreBackend.hpp: VALIDATE, its magic number; then SET
    return [hello + b"\1" + framed(key.encode()) + framed(value) for key in keys for value in poisons(mark)]


def garbage(mark: Path) -> list[bytes]:
    """No message of anybody's: nothing, parts, pickles bare and framed, lengths that nobody can hold."""
    sizes = [struct.pack("=Q", size) for size in (0, 1, 2**31, 2**40, 2**63, 2**64 - 1)]
    return [b"", b"\0", b"\0" * 7, b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 100_000, b"\0" * 100_000, *sizes] + [
        frame + poison for poison in poisons(mark) for frame in (b"", *sizes, struct.pack("=I", len(poison)))
    ]


def lets_in(address: str, port: int) -> bool:
    """Whether a stranger's connection is answered before a later one to a socket of our own."""
    with socket.socket() as stranger, socket.create_server(("127.0.0.1", 0)) as own:
        stranger.setblocking(False)
        stranger.connect_ex((address, port))
        socket.create_connection(own.getsockname(), timeout=10).close()
        return stranger.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\1"  # TCP_ESTABLISHED


def send(address: str, port: int, contents: list[bytes]) -> list[socket.socket]:
    """Each content through a connection of its own. Every other connection stays open, and is returned."""
    held = []
    for number, content in enumerate(contents):
        connection = socket.create_connection((address, port), timeout=10)
        try:
            connection.sendall(content)
        except OSError:  # it was hung up
            pass
        if number % 2:
            held.append(connection)
        else:
            connection.close()
    return held
