"""How agents bring the ranks of a run together, again after each restart: instead of torchrun's rendezvous,
whose state is a pickle in a store that listens on every interface.

One machine    no network: the ranks meet in a file store in a private folder.
Several        node 0's agent has a TCPStore that listens on the endpoint's address only; agents and ranks
               use it, for numbers and words. Whoever reaches it can disturb the run, but not run code.
"""

import os
import secrets
import socket
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousStateError,
    RendezvousStoreInfo,
    RendezvousTimeoutError,
)

from overnight import interfaces, meeting
from overnight.errors import UserError
from overnight.files import reason

BACKEND = "overnight"  # what torchrun calls it
EVERY = 0.1  # seconds between two looks at the store
ANSWER = timedelta(seconds=20)  # for the store's host, which may be lost
GOODBYE = 5.0  # seconds that node 0 waits at the end for the others to have read the last answers


class Rendezvous(RendezvousHandler):
    """What both have in common."""

    def __init__(self, run_id: str):
        self.run_id = run_id
        self.closed = False

    def get_backend(self) -> str:
        return BACKEND

    def get_run_id(self) -> str:
        return self.run_id

    def is_closed(self) -> bool:
        return self.closed

    def set_closed(self) -> None:
        self.closed = True

    def num_nodes_waiting(self) -> int:
        return 0

    def shutdown(self) -> bool:
        self.set_closed()
        return True


class OneMachine(Rendezvous):
    """The ranks of this agent only, in a folder of their own for every round of restarts: those that begin
    again must not find the addresses of dead ones."""

    def __init__(self, run_id: str, folder: Path):
        super().__init__(run_id)
        self.folder = folder
        self.round = 0

    def next_rendezvous(self) -> RendezvousInfo:
        self.round += 1
        os.environ[meeting.MEETING] = meeting.make_folder(self.folder / f"round-{self.round}")
        return RendezvousInfo(dist.HashStore(), 0, 1, RendezvousStoreInfo("127.0.0.1", 0))


@dataclass(frozen=True)
class Team:
    """Several machines, and which one this is."""

    nodes: int
    node: int
    processes: int
    """Ranks on each machine."""
    patience: float
    """Seconds to wait for the others."""


class SeveralMachines(Rendezvous):
    """An agent on each machine. In the store, each announces itself under its node's number with
    a random word, a new one each time; node 0 begins the next round when it has a new word from all. A node
    whose word is not that of the current round waits for the next one."""

    def __init__(self, run_id: str, endpoint: tuple[str, int], team: Team):
        super().__init__(run_id)
        self.host, self.port = endpoint
        self.team, self.nodes, self.node = team, team.nodes, team.node
        self.word, self.announced = "", 0
        self.store: dist.Store | None = serve(self.host, self.port) if self.node == 0 else None

    def next_rendezvous(self) -> RendezvousInfo:
        until = time.monotonic() + self.team.patience
        while True:
            try:
                round_ = self.join(self.connected(), until)
                break
            except dist.DistError:  # node 0 is not there yet, or no more
                if self.node == 0 or time.monotonic() > until:
                    raise RendezvousTimeoutError(f"{self.host}:{self.port} does not answer") from None
                self.store = None
                time.sleep(1)
        os.environ[meeting.MEETING] = f"tcp:{self.host}:{self.port}/{round_}"
        own = dist.PrefixStore(f"agents/{round_}", self.connected())
        return RendezvousInfo(own, self.node, self.nodes, RendezvousStoreInfo(self.host, self.port))

    def join(self, store: dist.Store, until: float) -> int:
        """The number of the next round that all nodes take part in."""
        self.word = f"{secrets.token_hex(8)}:{self.team.processes}"
        store.set(self.key(self.node), self.word)
        store.add("announced", 1)
        while True:
            if self.node == 0:
                self.begin(store)
            self.announced = store.add("announced", 0)
            round_, words = self.current(store)
            if words[self.node] == self.word:
                if len({word.partition(":")[2] for word in words}) > 1:
                    raise RendezvousStateError("each needs the same --nproc-per-node")
                return round_
            if store.check(["closed"]):
                raise RendezvousClosedError("another node has ended")
            if time.monotonic() > until:
                raise RendezvousTimeoutError(
                    f"not all {self.nodes} nodes came within {self.team.patience:.0f} s"
                )
            time.sleep(EVERY)

    def begin(self, store: dist.Store) -> None:
        """Node 0: begin a round if all nodes have announced themselves since the last one."""
        keys = [self.key(node) for node in range(self.nodes)]
        if not store.check(keys):
            return
        round_, before = self.current(store)
        words = [word.decode("ascii", "replace") for word in store.multi_get(keys)]
        if all(new != old for new, old in zip(words, before, strict=True)):
            store.set("round", " ".join([str(round_ + 1), *words]))

    def current(self, store: dist.Store) -> tuple[int, list[str]]:
        """The current round, and every node's word in it; before the first 0 and nothing."""
        if not store.check(["round"]):
            return 0, [""] * self.nodes
        round_, *words = store.get("round").decode("ascii", "replace").split(" ")
        if not round_.isdecimal() or len(words) != self.nodes:
            raise RendezvousStateError("somebody else writes to the store")
        return int(round_), words

    def num_nodes_waiting(self) -> int:
        """How many nodes were started again since the current round began."""
        if self.store is None:
            return 0
        try:
            store = self.connected()
            if (announced := store.add("announced", 0)) == self.announced:
                return 0
            self.announced = announced
            words = store.multi_get([self.key(node) for node in range(self.nodes)])
            before = self.current(store)[1]
        except dist.DistError:  # lost with node 0: the ranks notice, and `next_rendezvous` connects again
            if self.node > 0:
                self.store = None  # torch complains at length of every use of a broken connection
            return 0
        return sum(new.decode("ascii", "replace") != old for new, old in zip(words, before, strict=True))

    def shutdown(self) -> bool:
        """No more rounds: the other nodes need not wait for this one."""
        self.set_closed()
        try:
            store = self.connected()
            store.set("closed", "")
            gone, until = store.add("gone", 1), time.monotonic() + GOODBYE
            while self.node == 0 and gone < self.nodes and time.monotonic() < until:
                time.sleep(EVERY)
                gone = store.add("gone", 0)
        except dist.DistError:
            return False
        return True

    def connected(self) -> dist.Store:
        self.store = self.store or meeting.connected(f"{self.host}:{self.port}", ANSWER)
        return dist.PrefixStore("nodes", self.store)

    def key(self, node: int) -> str:
        return f"node/{node}"


def serve(host: str, port: int) -> dist.Store:
    """A store that listens on this address, and on no other. Raises UserError where it cannot."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family)
    except OSError as error:
        raise UserError(
            f"node 0 cannot listen on {host}:{port}: {reason(error)}.",
            "Give the address of node 0 in --rdzv-endpoint, and --node-rank 1 and so on to the other nodes.",
        ) from None
    if str(address[0]).startswith("127.") and host != address[0]:  # as Debian's /etc/hosts has it
        raise UserError(
            f"{host} is {address[0]} on this machine, which no other one reaches: give its address."
        )
    return dist.TCPStore(
        str(address[0]), port, is_master=True, timeout=ANSWER, wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )  # fmt: skip


def use_interface_to(host: str, port: int, team: Team) -> None:
    """Have this node's ranks listen only on the interface by which it reaches node 0. Raises UserError where
    that cannot be found out, or node 0 not be reached."""
    if {"GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"} <= os.environ.keys():
        return
    address = own_address(host, port, team.patience)
    if not (name := interfaces.interface_of(address)):
        raise UserError(f"which interface has {address}? Give its name: --interface NAME.")
    interfaces.listen_only_on(name)


def own_address(host: str, port: int, patience: float) -> str:
    """This machine's address in the network of HOST:PORT, where a store begins to listen some time."""
    until = time.monotonic() + patience
    while True:
        try:
            with socket.create_connection((host, port), timeout=10) as connection:
                return str(connection.getsockname()[0])
        except OSError as error:
            if time.monotonic() > until:
                raise UserError(f"node 0 cannot be reached at {host}:{port}: {reason(error)}.") from None
            time.sleep(1)
