"""The rendezvous of several machines: rounds that all nodes join, also after one was lost."""

import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import PrefixStore, TCPStore
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousInfo,
    RendezvousStateError,
    RendezvousTimeoutError,
)

from overnight import meeting, rendezvous
from overnight.errors import UserError
from overnight.rendezvous import SeveralMachines, Team

NODES = 3


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Callable[..., SeveralMachines]:
    """`node(0)`: the handler of a node, on a port of this test's."""
    monkeypatch.setenv(meeting.MEETING, "")
    monkeypatch.setattr(rendezvous, "GOODBYE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def make(number: int, processes: int = 2, patience: float = 120.0) -> SeveralMachines:
        return SeveralMachines("run", ("127.0.0.1", port), Team(NODES, number, processes, patience))

    return make


def join(*nodes: SeveralMachines) -> list[RendezvousInfo]:
    """All nodes ask for the next round, at the same time."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda node: node.next_rendezvous(), nodes))


def test_all_nodes_find_the_same_store_in_every_round(node: Callable[..., SeveralMachines]) -> None:
    nodes = [node(number) for number in range(NODES)]
    places = set()
    for round_ in range(3):
        found = join(*nodes)
        assert [(info.rank, info.world_size) for info in found] == [
            (number, NODES) for number in range(NODES)
        ]
        assert [one.num_nodes_waiting() for one in nodes] == [0] * NODES
        found[0].store.set("word", str(round_))
        assert [info.store.get("word") for info in found] == [str(round_).encode()] * NODES
        places.add(os.environ[meeting.MEETING])
    assert len(places) == 3, "ranks that begin again do not meet dead ones"


def test_a_node_that_was_lost_and_comes_back_is_waited_for(node: Callable[..., SeveralMachines]) -> None:
    """Though it was lost after it had announced itself for the next round."""
    nodes = [node(number) for number in range(NODES)]
    join(*nodes)
    with ThreadPoolExecutor() as pool:
        lost = node(1, patience=0.0)
        with pytest.raises(RendezvousTimeoutError, match="not all 3 nodes"):
            lost.next_rendezvous()
        assert [nodes[number].num_nodes_waiting() for number in (0, 2)] == [1, 1]
        back = node(1)
        first = pool.submit(back.next_rendezvous)
        while not back.word or nodes[0].connected().get(back.key(1)).decode() != back.word:
            time.sleep(0.01)  # until it has announced itself again
        others = [pool.submit(nodes[number].next_rendezvous) for number in (0, 2)]
        assert [task.result(120).rank for task in (first, *others)] == [1, 0, 2]
    assert [one.num_nodes_waiting() for one in (nodes[0], back, nodes[2])] == [0, 0, 0]


def test_a_round_that_began_without_a_node_is_followed_by_one_with_it(
    node: Callable[..., SeveralMachines],
) -> None:
    """It was lost after it had announced itself, and the others came before it was back."""
    nodes = [node(number) for number in range(NODES)]
    join(*nodes)
    with pytest.raises(RendezvousTimeoutError, match="not all 3 nodes"):
        node(1, patience=0.0).next_rendezvous()
    join(nodes[0], nodes[2])
    assert [nodes[number].num_nodes_waiting() for number in (0, 2)] == [0, 0]
    back = node(1)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(back.next_rendezvous)
        for number in (0, 2):
            while not nodes[number].num_nodes_waiting():
                time.sleep(0.01)
        others = [pool.submit(nodes[number].next_rendezvous) for number in (0, 2)]
        assert [task.result(120).rank for task in (first, *others)] == [1, 0, 2]


def test_node_0_that_comes_back_is_waited_for_too(
    node: Callable[..., SeveralMachines], capfd: pytest.CaptureFixture[str]
) -> None:
    nodes = [node(number) for number in range(NODES)]
    join(*nodes)
    nodes[0].store = None  # the store is gone with it
    assert [one.num_nodes_waiting() for one in nodes[1:]] == [0, 0]
    capfd.readouterr()
    # They ask ten times a second. Complaints each time would fill a pipe that nobody reads, and block there.
    assert [one.num_nodes_waiting() for one in nodes[1:]] == [0, 0]
    assert capfd.readouterr() == ("", "")
    with ThreadPoolExecutor() as pool:
        others = [pool.submit(one.next_rendezvous) for one in nodes[1:]]
        back = node(0)
        assert back.next_rendezvous().rank == 0
        assert [task.result(120).rank for task in others] == [1, 2]


def test_nobody_waits_for_a_node_that_has_given_up(node: Callable[..., SeveralMachines]) -> None:
    nodes = [node(number) for number in range(NODES)]
    join(*nodes)
    nodes[2].shutdown()
    with pytest.raises(RendezvousClosedError):
        nodes[1].next_rendezvous()


def test_nodes_with_different_numbers_of_ranks_are_refused(node: Callable[..., SeveralMachines]) -> None:
    nodes = [node(number, processes=2 + (number == 1)) for number in range(NODES)]
    with pytest.raises(RendezvousStateError, match="the same --nproc-per-node"):
        join(*nodes)


@pytest.mark.parametrize("garbage", ["", "x", "-1 a b c", "5 a b", "\0", "1" * 100_000, "\xff"])
def test_what_a_stranger_writes_ends_the_run_and_no_more(
    garbage: str, node: Callable[..., SeveralMachines]
) -> None:
    nodes = [node(number) for number in range(NODES)]
    join(*nodes)
    store = PrefixStore("nodes", TCPStore("127.0.0.1", nodes[0].port, is_master=False))
    store.set("round", garbage)
    with pytest.raises(RendezvousStateError, match="somebody else writes"):
        join(*nodes)


def test_node_0_listens_on_its_address_only_and_once(node: Callable[..., SeveralMachines]) -> None:
    first = node(0)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.3", first.port))
    with pytest.raises(UserError, match=r"node 0 cannot listen on 127\.0\.0\.1:"):
        node(0)


def test_a_name_that_is_this_machine_for_itself_only_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"localhost is 127\.0\.0\.1 on this machine, which no other one reaches"
    ):
        rendezvous.serve("localhost", 0)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(UserError, match=r"node 0 cannot listen on 192\.0\.2\.1:29500: .*\."):
        rendezvous.serve("192.0.2.1", 29500)
