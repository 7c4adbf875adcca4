import gzip
import hashlib
import socket
import socketserver
import sysconfig
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.data.document_files import joined

from overnight.data import documents
from overnight.data.documents import Piece
from overnight.errors import UserError


def read(path: Path) -> list[str]:
    return joined(documents.find(f"text:{path}", downloads=path / "unused"))


def write(path: Path, content: bytes) -> Path:
    """Write a file, packed if its name ends in .gz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


def test_a_folder_is_read_in_sorted_order_without_hidden_files(tmp_path: Path) -> None:
    for name in ("c.txt", "a.md", "b/z.py", "b/a.txt.gz", "B.txt"):
        write(tmp_path / name, name.encode())
    for name in (".a.txt", ".git/a.txt", "b/.cache/a.md", "picture.png", "a.txt.zip", "notes"):
        write(tmp_path / name, b"not read")
    (tmp_path / "folder.txt").mkdir()
    assert read(tmp_path) == ["B.txt", "a.md", "b/a.txt.gz", "b/z.py", "c.txt"]


def test_a_source_can_be_read_again(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", b'{"text": "one"}\n{"text": "two"}\n')
    source = documents.find(f"text:{tmp_path}", downloads=tmp_path)
    assert list(source) == list(source) == [Piece("one", True), Piece("two", True)]


PACKED = gzip.compress(bytes(range(97, 123)) * 100, mtime=0)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("text:missing", r"there is no file or folder missing\."),
        (
            "text:empty",
            r"the folder empty has no text in it: known are \.txt \.md \.py \.jsonl \.parquet",
        ),
        ("text:a.png", r"cannot read a\.png: known are .*, each also as \.gz or \.zst\."),
        ("text:a.gz", r"cannot read a\.gz: known are"),
        ("text:", r"text: names no path: text:PATH\."),
        ("stackexchange", r"stackexchange names no path: stackexchange:PATH\."),
        ("a.png", r"to read the files of a\.png say text:a\.png\."),
        ("shakespear", r"unknown source 'shakespear'\. Did you mean shakespeare\? The sources are stdlib,"),
        (
            "zzz",
            r"unknown source 'zzz'\. The sources are stdlib, shakespeare, text:PATH, .*, hf:DATASET",
        ),
    ],
)
def test_a_source_that_cannot_be_read_is_refused(
    source: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    for name in ("a.png", "a.gz", "empty/.hidden.txt"):
        Path(name).write_bytes(b"text")
    with pytest.raises(UserError, match=says):
        documents.find(source, downloads=Path("downloads"))
    assert not Path("downloads").exists()


def test_the_standard_library_is_there_and_is_utf8(tmp_path: Path) -> None:
    source = documents.find("stdlib", downloads=tmp_path)
    assert source.paths == documents.find("stdlib", downloads=tmp_path).paths
    assert sum(source.sizes) > 5_000_000
    root = Path(sysconfig.get_path("stdlib"))
    assert root / "json" / "decoder.py" in source.paths
    for path in source.paths:
        assert not {"test", "tests", "site-packages", "encodings"} & set(path.relative_to(root).parts)
        path.read_text(encoding="utf-8")


def respond(content: bytes) -> bytes:
    return b"HTTP/1.0 200 OK\r\n\r\n" + content


Serve = Callable[[bytes], list[bytes]]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """A function: send these bytes to whoever downloads Shakespeare; what it returns fills with requests."""
    servers = []

    def start(response: bytes) -> list[bytes]:
        requests: list[bytes] = []

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                requests.append(self.rfile.readline())
                while self.rfile.readline().strip():
                    pass
                self.wfile.write(response)

        servers.append(socketserver.TCPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=[0.01], daemon=True).start()
        url = f"http://127.0.0.1:{servers[-1].server_address[1]}/input.txt"
        monkeypatch.setattr(documents, "SHAKESPEARE_URL", url)
        return requests

    monkeypatch.setenv("no_proxy", "*")
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_shakespeare_is_downloaded_once(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play = b"First Citizen:\nBefore we proceed any further, hear me speak.\n"
    monkeypatch.setattr(documents, "SHAKESPEARE_SHA256", hashlib.sha256(play).hexdigest())
    requests = serve(respond(play))
    for _ in range(2):
        assert joined(documents.find("shakespeare", tmp_path / "downloads")) == [play.decode()]
        assert requests == [b"GET /input.txt HTTP/1.1\r\n"]
    (tmp_path / "downloads" / "tinyshakespeare.txt").write_bytes(b"damaged")
    assert joined(documents.find("shakespeare", tmp_path / "downloads")) == [play.decode()]
    assert len(requests) == 2


@pytest.mark.parametrize(
    "response",
    [
        respond(b"<html>Please log in to this network</html>"),
        respond(b""),
        b"HTTP/1.0 404 Not Found\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nFirst",  # ends too early
        b"who are you?\r\n\r\n",
        b"",
    ],
    ids=["another page", "nothing", "not found", "cut short", "not HTTP", "hung up"],
)
def test_what_is_not_shakespeare_is_refused_and_leaves_nothing(
    response: bytes, serve: Serve, tmp_path: Path
) -> None:
    serve(response)
    with pytest.raises(UserError, match=r"text:PATH"):
        documents.find("shakespeare", tmp_path / "downloads")
    assert not list(tmp_path.iterdir())


def test_without_a_network_the_way_to_read_a_copy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody_listens.getsockname()[1]}/"
        monkeypatch.setattr(documents, "SHAKESPEARE_URL", url)
        with pytest.raises(UserError, match=r"cannot download Shakespeare \(.*refused") as refusal:
            documents.find("shakespeare", tmp_path / "downloads")
    assert "overnight prepare text:PATH --tokenizer char" in str(refusal.value)
    assert not list(tmp_path.iterdir())
