"""Which network interface ranks listen on."""

import os
import socket
import sys

import pytest
from tests.sockets import lets_in

from overnight import interfaces

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_the_loopback_interface_is_chosen_for_one_machine() -> None:
    interfaces.listen_only_here()
    assert (os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"]) == ("lo", "=lo")


def test_what_the_user_chose_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    interfaces.listen_only_here()
    assert (os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"]) == ("eth7", "=lo")


def test_an_address_belongs_to_an_interface() -> None:
    assert interfaces.interface_of("127.0.0.1") == interfaces.interface_of("127.0.0.2") == "lo"
    assert interfaces.interface_of("192.0.2.1") == ""
    for _, name in socket.if_nameindex():
        for address in interfaces.addresses(name):
            assert interfaces.interface_of(address) == name


def test_sockets_are_closed_to_all_but_those_that_have_met() -> None:
    with socket.create_server(("127.0.0.1", 0)) as earlier:
        with interfaces.closed_afterwards():
            server = socket.create_server(("127.0.0.1", 0))
            client = socket.create_connection(server.getsockname(), timeout=10)
            assert lets_in(*server.getsockname())
        accepted, _ = server.accept()
        assert not lets_in(*server.getsockname())
        assert lets_in(*earlier.getsockname())
        accepted.sendall(b"go on")
        assert client.recv(5) == b"go on"
        for one in (accepted, client, server):
            one.close()
