"""A hub of datasets on 127.0.0.1 that speaks as the real one does and misbehaves as it is told.

Files are on a second host to which it redirects, as the hub does; both note what they are asked and send.
"""

import contextlib
import hashlib
import json
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PIECE = 1 << 14  # bytes sent at a time


@dataclass
class Repository:
    """A dataset: its files, what its card says, and how many of the files a page of its tree has."""

    files: dict[str, bytes]
    card: dict[str, Any] = field(default_factory=dict)
    page: int = 1000
    trees: bool = True  # False: as some mirrors
    gated: bool = False
    ranges: bool = True  # False: every answer is the whole file


@dataclass
class Misbehaving:
    """The server. `script` has, by path, what happens to the next requests for it; then it behaves.

    ("drop", k)          the connection breaks after k bytes of the body
    ("truncate", k)      the body ends after k bytes, and says so
    ("status", n, {..})  status n with these headers
    ("corrupt",)         other bytes, as many
    ("hang", k)          nothing more comes after k bytes
    ("whole",)           Range is ignored: 200 and everything
    ("slow", s)          s seconds before each piece
    ("meet",)            nothing before `meeting` has its parties
    ("html",)            a page of a proxy
    """

    repositories: dict[str, Repository]
    endpoint: str = ""
    script: dict[str, deque[tuple[Any, ...]]] = field(default_factory=dict)
    sent: Counter[str] = field(default_factory=Counter)  # bytes of bodies, by path
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, Range
    tokens: list[tuple[str, str]] = field(default_factory=list)  # path, Authorization
    meeting: threading.Barrier = field(default_factory=lambda: threading.Barrier(2, timeout=20))
    storage: str = ""  # where the large files are
    lock: threading.Lock = field(default_factory=threading.Lock)
    over: threading.Event = field(default_factory=threading.Event)

    def will(self, path: str, *acts: tuple[Any, ...]) -> None:
        """What happens to the next requests for `path` (of the API or of a file)."""
        self.script[path] = deque(acts)

    def next_act(self, path: str) -> tuple[Any, ...]:
        with self.lock:
            acts = self.script.get(path)
            return acts.popleft() if acts else ("behave",)

    def asked(self, path: str) -> list[str]:
        """The Range headers of the GET requests for a file."""
        return [asked for method, name, asked in self.requests if method == "GET" and name == path]


@contextlib.contextmanager
def serve(repositories: dict[str, Repository]) -> Iterator[Misbehaving]:
    """Run the server; `endpoint` is for HF_ENDPOINT."""
    state = Misbehaving(repositories)
    servers = []
    for handler in (Api, Storage):
        bound = type(handler.__name__, (handler,), {"state": state, "protocol_version": "HTTP/1.1"})
        server = ThreadingHTTPServer(("127.0.0.1", 0), bound)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        servers.append(server)
    state.endpoint, state.storage = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    try:
        yield state
    finally:
        state.over.set()
        for server in servers:
            server.shutdown()
            server.server_close()


class Handler(BaseHTTPRequestHandler):
    """What both hosts have in common."""

    state: Misbehaving

    def do_HEAD(self) -> None:
        self.answer_all()

    def do_GET(self) -> None:
        self.answer_all()

    def answer_all(self) -> None:
        try:
            self.answer(unquote(urlsplit(self.path).path).lstrip("/"))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # they do not want more

    def answer(self, path: str) -> None:
        raise NotImplementedError

    def reply(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def note(self, path: str) -> None:
        with self.state.lock:
            self.state.requests.append((self.command, path, self.headers.get("Range", "")))
            self.state.tokens.append((path, self.headers.get("Authorization", "")))

    def log_message(self, *_: Any) -> None: ...


class Api(Handler):
    """huggingface.co"""

    def answer(self, path: str) -> None:
        act = self.state.next_act(path)
        if act[0] == "status":
            self.note(path)
            return self.reply(act[1], act[2])
        if act[0] == "html":
            return self.reply(200, {"Content-Type": "text/html"}, b"<html>log in first</html>")
        if path.startswith("api/datasets/"):
            self.note(path)
            return self.describe(path.removeprefix("api/datasets/"))
        name, _, rest = path.removeprefix("datasets/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        if (repository := self.repository(name, revision)) is None:
            return None
        if file not in repository.files:
            return self.reply(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        content = repository.files[file]
        return self.reply(
            302,
            {
                "Location": f"{self.state.storage}/{name}/{file}",
                "X-Repo-Commit": COMMIT,
                "X-Linked-Size": str(len(content)),
                "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
            },
        )

    def repository(self, name: str, revision: str) -> Repository | None:
        repository = self.state.repositories.get(name)
        problem = "RepoNotFound" if repository is None else None
        if repository is not None and revision not in ("main", COMMIT):
            problem = "RevisionNotFound"
        if repository is not None and repository.gated and "Authorization" not in self.headers:
            self.reply(403, {"X-Error-Code": "GatedRepo"})
        elif problem:
            self.reply(404, {"X-Error-Code": problem})
        else:
            return repository
        return None

    def describe(self, path: str) -> None:
        query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        user, dataset, *rest = path.split("/")
        what, revision = rest[:2] or ("revision", "main")
        if (repository := self.repository(f"{user}/{dataset}", revision)) is None:
            return None
        if what == "revision":
            siblings = [
                {"rfilename": name}
                | ({"size": len(content)} | self.lfs(content, "sha256") if query.get("blobs") else {})
                for name, content in repository.files.items()
            ]
            return self.json({"id": path, "sha": COMMIT, "cardData": repository.card, "siblings": siblings})
        folder = "".join(f"{part}/" for part in rest[2:])
        inside = {name: content for name, content in repository.files.items() if name.startswith(folder)}
        if not inside or not repository.trees:
            return self.reply(404, {"X-Error-Code": "EntryNotFound"} if repository.trees else {})
        start = int(query.get("cursor", 0))
        page = sorted(inside)[start : start + repository.page]
        link = {}
        if start + repository.page < len(inside):
            here = f"{self.state.endpoint}{urlsplit(self.path).path}"
            link = {"Link": f'<{here}?recursive=True&cursor={start + repository.page}>; rel="next"'}
        entries = [
            {"type": "file", "path": name, "oid": "0" * 40, "size": len(inside[name])}
            | self.lfs(inside[name], "oid")
            for name in page
        ]
        folders = {name.rpartition("/")[0] for name in page if "/" in name}
        return self.json([{"type": "directory", "path": name} for name in folders] + entries, link)

    @staticmethod
    def lfs(content: bytes, digest: str) -> dict[str, Any]:
        """What is binary or large is in LFS; text here stands for the rest, whose hash nobody knows."""
        if content.isascii():
            return {}
        return {
            "lfs": {digest: hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        }

    def json(self, value: Any, headers: dict[str, str] | None = None) -> None:
        self.reply(200, {"Content-Type": "application/json"} | (headers or {}), json.dumps(value).encode())


class Storage(Handler):
    """Where the hub sends those who want a file: USER/NAME/PATH."""

    def answer(self, path: str) -> None:
        self.note(path)
        user, dataset, file = path.split("/", 2)
        repository = self.state.repositories[f"{user}/{dataset}"]
        content = repository.files[file]
        act, *rest = self.state.next_act(path)
        if act == "status":
            return self.reply(rest[0], rest[1])
        asked = self.headers.get("Range", "") if repository.ranges and act != "whole" else ""
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if start >= len(content) > 0:
            return self.reply(416, {"Content-Range": f"bytes */{len(content)}"})
        body = content[start:]
        if act == "corrupt":
            body = bytes(255 - byte for byte in body)
        length = min(rest[0], len(body)) if act == "truncate" else len(body)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(length))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        end = rest[0] if act in ("drop", "hang", "truncate") else len(body)
        if act == "meet":
            self.state.meeting.wait()
        for at in range(0, end, PIECE):
            if act == "slow":
                time.sleep(rest[0])
            piece = body[at : min(at + PIECE, end)]
            self.wfile.write(piece)
            with self.state.lock:
                self.state.sent[path] += len(piece)
        self.wfile.flush()
        if act == "hang":
            self.state.over.wait(60)
        self.close_connection = self.close_connection or act in ("drop", "hang")
        return None
