"""Whoever has no business here is sent away, in OpenAI's words, before anything is done."""

import http.client
import json
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.serve.running import Reply, Server, serving

from overnight.serve.guard import HEADERS

BODY = json.dumps({"model": "x", "prompt": "the", "max_tokens": 1}).encode()


@pytest.fixture(scope="module")
def server(trained: Path) -> Iterator[Server]:
    with serving(trained) as one:
        yield one


@pytest.fixture(scope="module")
def open_server(trained: Path) -> Iterator[Server]:
    """One that listens on every address, so it asks for a token."""
    with serving(trained, "--host", "0.0.0.0", OVERNIGHT_TOKEN="swordfish") as one:
        yield one


def post(server: Server, **headers: str) -> Reply:
    return server.ask("POST", "/v1/completions", BODY, **{"Content_Type": "application/json"} | headers)


def raw(server: Server, request: bytes, timeout: float = 30) -> bytes:
    """What comes back for bytes that no client library would send."""
    with closing(socket.create_connection(("127.0.0.1", server.port), timeout)) as connection:
        connection.sendall(request)
        parts = b""
        while part := connection.recv(65536):
            parts += part
        return parts


def head_of(what: str, server: Server) -> str:
    return f"{what} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"


def test_its_own_page_may_ask(server: Server) -> None:
    assert post(server).status == 200
    for host in ("127.0.0.1", "localhost", "LocalHost", "[::1]"):
        name = f"{host}:{server.port}"
        assert post(server, Host=name, Origin=f"http://{name.lower()}").status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "127.0.0.1.evil.example:{port}", ""],
)
def test_another_name_that_points_here_is_refused(server: Server, host: str) -> None:
    """DNS rebinding: the browser believes it is talking to evil.example."""
    for method, path, body in (
        ("POST", "/v1/completions", BODY),
        ("GET", "/", None),
        ("GET", "/events", None),
    ):
        reply = server.ask(
            method, path, body, Host=host.format(port=server.port), Content_Type="application/json"
        )
        assert reply.status == 403
        assert reply.json["error"]["code"] == "wrong_host"


def test_two_hosts_are_one_too_many(server: Server) -> None:
    hosts = f"Host: 127.0.0.1:{server.port}\r\nHost: evil.example\r\n"
    answer = raw(server, f"GET / HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n".encode())
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 403"))


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "https://127.0.0.1:1",
        "http://127.0.0.1",
        "http://localhost.evil.example",
        "",
    ],
)
def test_another_sites_page_is_refused(server: Server, origin: str) -> None:
    reply = post(server, Origin=origin)
    assert (reply.status, reply.json["error"]["code"]) == (403, "wrong_origin")


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]
)
def test_what_a_form_can_send_is_refused(server: Server, kind: str) -> None:
    assert post(server, Content_Type=kind).status == 415


def test_json_with_a_charset_is_json(server: Server) -> None:
    assert post(server, Content_Type="application/json; charset=utf-8").status == 200


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"])
def test_other_methods_are_refused(server: Server, method: str) -> None:
    """OPTIONS too: no page of another site gets a preflight answered."""
    reply = server.ask(method, "/v1/completions", None)
    assert reply.status == 405
    assert "access-control-allow-origin" not in reply.headers


def test_every_answer_carries_the_policy(server: Server) -> None:
    replies = [server.ask("GET", path) for path in ("/", "/playground", "/v1/models", "/page.css", "/none")]
    replies += [
        server.ask("GET", "/", Host="evil.example"),
        post(server),
        post(server, Content_Type="text/plain"),
    ]
    for reply in replies:
        for name, value in HEADERS.items():
            assert reply.headers[name.lower()] == value
        assert "server" not in reply.headers
    assert "script-src 'self'" in HEADERS["Content-Security-Policy"]


@pytest.mark.parametrize(
    "path",
    ["/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/..%2f..%2fetc%2fpasswd",
     "/page.css/../../records.jsonl",
     "/records.jsonl", "/config.json", "/static/../cli.py", "//etc/passwd", "/v1/models/../../x", "/\x00"],
)  # fmt: skip
def test_no_path_reaches_a_file(server: Server, path: str) -> None:
    answer = raw(server, f"{head_of(f'GET {path}', server)}Connection: close\r\n\r\n".encode())
    assert answer.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400"))
    assert b"root:" not in answer


def test_a_large_body_is_refused_declared_or_not(server: Server) -> None:
    large = b'{"prompt": "' + b"a" * 300_000 + b'"}'
    assert server.ask("POST", "/v1/completions", large, Content_Type="application/json").status == 413
    with closing(server.connect()) as connection:
        connection.request(
            "POST", "/v1/completions", iter([large[:100_000]] * 4), {"Content-Type": "application/json"},
            encode_chunked=True,
        )  # fmt: skip
        assert connection.getresponse().status == 413
    assert post(server).status == 200


@pytest.mark.parametrize("length", ["-1", "nonsense", "9" * 30])
def test_a_length_that_is_none_is_refused(server: Server, length: str) -> None:
    head = head_of("POST /v1/completions", server) + "Content-Type: application/json\r\n"
    answer = raw(server, f"{head}Content-Length: {length}\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 413"))


def test_a_body_that_never_comes_is_not_waited_for(server: Server) -> None:
    head = head_of("POST /v1/completions", server) + "Content-Type: application/json\r\n"
    began = time.monotonic()
    answer = raw(server, f"{head}Content-Length: 10\r\nConnection: close\r\n\r\n{{".encode())
    assert answer.startswith(b"HTTP/1.1 408")
    assert time.monotonic() - began < 25


def test_on_other_addresses_a_token_is_asked_for(open_server: Server) -> None:
    assert "?token=swordfish" in open_server.said
    for path in ("/", "/playground", "/v1/models", "/events", "/page.css"):
        reply = open_server.ask("GET", path)
        assert (reply.status, reply.json["error"]["code"]) == (401, "invalid_api_key")
    assert post(open_server).status == 401
    for wrong in ("Bearer swordfis", "Bearer swordfishes", "Bearer ", "Basic swordfish", "swordfish"):
        assert post(open_server, Authorization=wrong).status == 401
    assert post(open_server, Authorization="Bearer swordfish").status == 200
    assert post(open_server, Authorization="bearer swordfish", Host="my.machine:80").status == 200
    evil = post(open_server, Authorization="Bearer swordfish", Origin="http://evil.example")
    assert evil.status == 403


def test_a_browser_keeps_the_token_in_a_cookie_out_of_the_address(open_server: Server) -> None:
    reply = open_server.ask("GET", "/?token=swordfish")
    assert (reply.status, reply.headers["location"]) == (303, "/")
    cookie = reply.headers["set-cookie"]
    assert "httponly" in cookie.lower()
    assert "samesite=strict" in cookie.lower()
    kept = cookie.partition(";")[0]
    assert open_server.ask("GET", "/", Cookie=kept).status == 200
    assert post(open_server, Cookie=kept).status == 200
    assert open_server.ask("GET", "/?token=wrong").status == 401
    assert open_server.ask("GET", "/", Cookie=kept + "x").status == 401


def test_a_token_is_made_where_none_is_given(trained: Path) -> None:
    with serving(trained, "--host", "0.0.0.0", OVERNIGHT_TOKEN="") as one:
        token = one.said.partition("?token=")[2].partition("\n")[0]
        assert len(token) >= 32
        assert one.ask("GET", "/v1/models", Authorization=f"Bearer {token}").status == 200


def test_not_one_of_many_bad_connections_disturbs_the_others(server: Server) -> None:
    held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(50)]
    for one in held[::2]:
        one.sendall(b"GET / HTTP/1.1\r\nHost: ")
    assert post(server).status == 200
    for garbage in (b"\x00" * 5000, b"GET\r\n\r\n", b"A" * 200_000, b"POST / HTTP/9.9\r\n\r\n"):
        with closing(socket.create_connection(("127.0.0.1", server.port), 30)) as connection:
            connection.sendall(garbage)
    assert post(server).status == 200
    for one in held:
        one.close()
    assert post(server).status == 200


def test_more_at_a_time_than_can_be_answered_are_told_so(server: Server) -> None:
    """Open dashboards count: none of them starves the others of an answer for long."""
    held: list[http.client.HTTPConnection] = []
    try:
        statuses = []
        for _ in range(260):
            connection = server.connect()
            connection.request("GET", "/events")
            statuses.append(connection.getresponse().status)
            held.append(connection)
        assert statuses[:250] == [200] * 250
        assert statuses[-1] == 503
    finally:
        for connection in held:
            connection.close()
    end = time.monotonic() + 30
    while post(server).status != 200:
        assert time.monotonic() < end
