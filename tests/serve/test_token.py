"""Where a token is asked for, and how a client or a browser gives it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.serve.running import Reply, Server, serving

BODY = json.dumps({"model": "x", "prompt": "the", "max_tokens": 1}).encode()


@pytest.fixture(scope="module")
def open_server(trained: Path) -> Iterator[Server]:
    """One that listens on every address, so it asks for a token."""
    with serving(trained, "--host", "0.0.0.0", OVERNIGHT_TOKEN="swordfish") as one:
        yield one


def post(server: Server, **headers: str) -> Reply:
    return server.ask("POST", "/v1/completions", BODY, **{"Content_Type": "application/json"} | headers)


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


def test_the_cookie_is_found_among_others_and_does_not_contain_the_token(open_server: Server) -> None:
    kept = open_server.ask("GET", "/?token=swordfish").headers["set-cookie"].partition(";")[0]
    assert "swordfish" not in kept
    name = kept.partition("=")[0]
    for cookies in (f"a=b; {kept}", f"{kept};c", f"{name}=planted; {kept}; x=y", f";;=; {kept}"):
        assert open_server.ask("GET", "/v1/models", Cookie=cookies).status == 200
    for cookies in (f"x{kept}", f"{name}=swordfish", f"{name}=", name, f"a={kept}", '"' + "\\" * 10_000):
        assert open_server.ask("GET", "/v1/models", Cookie=cookies).status == 401


def test_a_token_of_any_printable_characters_works(trained: Path) -> None:
    token = 'a"b;c,d=e\\f%g&h+i'
    with serving(trained, OVERNIGHT_TOKEN=token) as one:
        address = "/" + one.said.partition(f":{one.port}/")[2].partition("\n")[0]
        kept = one.ask("GET", address).headers["set-cookie"].partition(";")[0]
        assert one.ask("GET", "/v1/models", Cookie=kept).status == 200
        assert one.ask("GET", "/v1/models", Authorization=f"Bearer {token}").status == 200


def test_cookies_are_read_in_linear_time() -> None:
    """http.cookies of Pythons before 3.11.10 takes half an hour for these."""
    code = """
from starlette.datastructures import Headers
from overnight.serve.guard import COOKIE, in_cookies
print(in_cookies(Headers({"cookie": COOKIE + '="' + chr(92) * 1_000_000 + "; " + COOKIE + "=x"}))[1])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.stdout, done.stderr) == ("x\n", "")


def test_on_this_machine_only_a_token_is_asked_for_if_it_is_set(trained: Path) -> None:
    """127.0.0.1 is reached by every user of a shared machine."""
    with serving(trained, OVERNIGHT_TOKEN="swordfish") as one:
        assert "?token=swordfish" in one.said
        assert one.ask("GET", "/v1/models").status == 401
        assert one.ask("GET", "/v1/models", Authorization="Bearer swordfish").status == 200


def test_a_token_is_made_where_none_is_given(trained: Path) -> None:
    with serving(trained, "--host", "0.0.0.0", OVERNIGHT_TOKEN="") as one:
        token = one.said.partition("?token=")[2].partition("\n")[0]
        assert len(token) >= 32
        assert one.ask("GET", "/v1/models", Authorization=f"Bearer {token}").status == 200
