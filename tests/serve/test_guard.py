"""Whoever has no business here is sent away, in OpenAI's words, before anything is done."""

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.serve.running import Reply, Server, serving, until

from overnight.serve.guard import HEADERS, MOST_REQUESTS, hosts_of
from overnight.serve.live import MOST_FOLLOWERS
from overnight.serve.pages import PLOTLY

BODY = json.dumps({"model": "x", "prompt": "the", "max_tokens": 1}).encode()


@pytest.fixture(scope="module")
def server(trained: Path) -> Iterator[Server]:
    with serving(trained) as one:
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


def test_the_host_that_is_listened_on_may_be_given_in_capitals(trained: Path) -> None:
    assert hosts_of(["MyMachine"], 80) == {"mymachine:80", "mymachine"}
    with serving(trained, "--host", "LocalHost") as one:
        for host in ("LocalHost", "localhost", "127.0.0.1"):
            assert one.ask("GET", "/v1/models", Host=f"{host}:{one.port}").status == 200


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


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_another_sites_page_cannot_load_anything_without_an_origin_either(server: Server, site: str) -> None:
    """As images, scripts or frames, which would hold the followers' places."""
    for mode, dest in (("no-cors", "image"), ("no-cors", "script"), ("navigate", "iframe")):
        headers = {"Sec_Fetch_Site": site, "Sec_Fetch_Mode": mode, "Sec_Fetch_Dest": dest}
        for path in ("/", "/events", "/summary.json"):
            assert server.ask("GET", path, **headers).status == 403
    followed = {"Sec_Fetch_Site": site, "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
    assert server.ask("GET", "/", **followed).status == 200
    own = {"Sec_Fetch_Site": "same-origin", "Sec_Fetch_Mode": "cors", "Sec_Fetch_Dest": "empty"}
    assert server.ask("GET", "/summary.json", **own).status == 200


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


def test_more_at_a_time_than_can_be_answered_are_told_so(trained: Path) -> None:
    with serving(trained, "--rows", "1", "--max-tokens", "1000000") as server:
        held: list[http.client.HTTPConnection] = []
        endless = json.dumps({"prompt": "the", "max_tokens": 1_000_000, "temperature": 0})
        for _ in range(MOST_REQUESTS):
            connection = server.connect()
            connection.request("POST", "/v1/completions", endless, {"Content-Type": "application/json"})
            held.append(connection)
        until("all are counted", lambda: server.ask("GET", "/v1/models").status == 503)
        assert server.ask("GET", "/v1/models").json["error"]["code"] == "overloaded"
        for connection in held:
            connection.close()
        until("an answer", lambda: post(server).status == 200)


def test_clients_that_never_read_keep_nobody_from_being_answered(server: Server) -> None:
    """More of them than requests that may be worked at: 1.3 GB of plotly.js, of which each holds 64 kB."""
    with contextlib.ExitStack() as held:
        for _ in range(MOST_REQUESTS + 50):
            client = held.enter_context(socket.create_connection(("127.0.0.1", server.port), 60))
            client.sendall(f"{head_of(f'GET {PLOTLY}', server)}\r\n".encode())
            assert client.recv(12) == b"HTTP/1.1 200"
        assert post(server).status == 200
        assert server.ask("GET", "/").status == 200


def test_the_head_of_the_events_is_not_a_follower(server: Server) -> None:
    for _ in range(MOST_FOLLOWERS + 1):
        reply = server.ask("HEAD", "/events")
        assert (reply.status, reply.body) == (200, b"")
        assert reply.headers["content-type"].startswith("text/event-stream")
    with closing(server.connect()) as connection:  # which is usable for a next request
        for method, path in (("HEAD", "/events"), ("GET", "/v1/models")):
            connection.request(method, path)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200


def test_dashboards_that_follow_a_run_are_counted(server: Server) -> None:
    held = []
    for _ in range(MOST_FOLLOWERS):
        connection = server.connect()
        connection.request("GET", "/events")
        answer = connection.getresponse()
        assert answer.status == 200
        held.append((connection, answer))
    reply = server.ask("GET", "/events")
    assert (reply.status, reply.json["error"]["code"]) == (503, "overloaded")
    assert "close one" in reply.json["error"]["message"]
    assert server.ask("GET", "/").status == 200
    for connection, answer in held:
        answer.close()
        connection.close()

    def follows() -> bool:
        with closing(server.connect()) as connection:
            connection.request("GET", "/events")
            return connection.getresponse().status == 200

    until("room for one more", follows)
