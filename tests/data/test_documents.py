import gzip
import hashlib
import io
import json
import socket
import socketserver
import sysconfig
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight.data import documents, tokens
from overnight.data.documents import Piece
from overnight.errors import UserError

WORDS = st.lists(
    st.sampled_from(
        [*" \n\t\r'.\x1c\u00a0\u3000", "  ", "\n\n", " a", "it's", "漢字かな", "é", "😀", "12", "--"]
    )
)
TEXTS = st.text() | WORDS.map("".join)
KNOWN = [".txt", ".md", ".py", ".jsonl"]

gpt2 = tokens.gpt2()


def joined(pieces: Iterable[Piece]) -> list[str]:
    """The documents that pieces are parts of."""
    texts: list[str] = []
    for piece in pieces:
        if piece.first:
            texts.append("")
        texts[-1] += piece.text
    return texts


def read(path: Path) -> list[str]:
    return joined(documents.find(f"text:{path}", downloads=path / "unused"))


def write(path: Path, content: bytes) -> Path:
    """Write a file, packed if its name ends in .gz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


def whole(text: str) -> list[Piece]:
    return list(documents.read_whole(io.BytesIO(text.encode()), Path("a.txt")))


def lines(*texts: str) -> list[Piece]:
    file = io.BytesIO("".join(json.dumps({"text": text}) + "\n" for text in texts).encode())
    return list(documents.read_lines(file, Path("a.jsonl")))


@pytest.mark.parametrize("reader", [whole, lines])
@given(text=TEXTS, block=st.integers(1, 9))
def test_cutting_a_document_changes_neither_its_text_nor_its_tokens(reader, text: str, block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "BLOCK", block)
        pieces = reader(text)
    assert joined(pieces) == ([text] if text else [])
    ids = [i for piece in pieces for i in gpt2.encode(piece.text).tolist()]
    assert ids == gpt2.encode(text).tolist()


def test_documents_are_cut_before_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "BLOCK", 4)
    assert whole("one two three") == [Piece("one", True), Piece(" two", False), Piece(" three", False)]
    assert lines("one two  six", "x") == [Piece("one two", True), Piece("  six", False), Piece("x", True)]


def test_a_long_run_without_spaces_is_cut_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "BLOCK", 4)
    monkeypatch.setattr(documents, "LONGEST_RUN", 8)
    assert [piece.text for piece in whole("a" * 20)] == ["a" * 8, "a" * 8, "a" * 4]


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("suffix", [".txt", ".md", ".py", ".TXT"])
def test_a_file_is_one_document(suffix: str, packed: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"a{suffix}{packed}", "ein Wörtchen\r\n\nnoch eins\n".encode())
    assert read(path) == ["ein Wörtchen\r\n\nnoch eins\n"]


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_a_line_of_jsonl_is_one_document(packed: str, tmp_path: Path) -> None:
    content = '{"text": "eins\\nzwei"}\n\n  \n{"id": 7, "text": "drü"}\n{"text": ""}\n{"text": "\\u00e9"}'
    assert read(write(tmp_path / f"a.jsonl{packed}", content.encode())) == ["eins\nzwei", "drü", "é"]


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


@given(content=st.binary() | st.text().map(lambda text: text.encode("utf-16-le")), block=st.integers(1, 9))
def test_what_is_not_utf8_is_refused_naming_the_byte(content: bytes, block: int) -> None:
    """Python's own decoder, given all at once, says which byte."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "BLOCK", block)
        try:
            content.decode()
        except UnicodeDecodeError as error:
            with pytest.raises(UserError, match=rf"^a\.txt is not UTF-8 text \(at byte {error.start:,}\)\."):
                list(documents.read_whole(io.BytesIO(content), Path("a.txt")))
        else:
            list(documents.read_whole(io.BytesIO(content), Path("a.txt")))


@pytest.mark.parametrize("block", [1, 2, 3, 4, 5, 6, 1 << 20])
@pytest.mark.parametrize(
    ("content", "byte"),
    [(b"abc\xffdef", 3), (b"\xfcber", 0), (b"abc\xe2\x82A", 3), (b"abc\xe2\x82", 3), (b"ab\xf0\x9f\x98", 2)],
)
def test_the_byte_is_named_wherever_blocks_end(
    content: bytes, byte: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "BLOCK", block)
    with pytest.raises(UserError, match=rf"at byte {byte}\)"):
        list(documents.read_whole(io.BytesIO(content), Path("a.txt")))


@pytest.mark.parametrize(
    "line",
    [
        *("not json", "[1]", "5", "null", '"text"', '{"txt": "a"}', '{"text": 5}', '{"text": null}', "{}"),
        *('["text"]', '{"text": ["a"]}', '{"text": "a"', '{"text": "a"} {"text": "b"}', "[" * 100_000),
    ],
)
def test_a_bad_line_is_refused_with_its_number(line: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", f'{{"text": "good"}}\n\n{line}\n{{"text": "good"}}\n'.encode())
    with pytest.raises(UserError, match=r'a\.jsonl, line 3: not a JSON object with a string "text"\.$'):
        read(path)


def test_a_line_that_is_not_utf8_is_refused_with_its_number(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "good"}\n{"text": "\xfcber"}\n')
    with pytest.raises(UserError, match=r"a\.jsonl is not UTF-8 text \(at line 2\)"):
        read(path)


def test_a_line_too_long_to_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "LONGEST_LINE", 1 << 20)
    path = write(tmp_path / "a.jsonl", b'{"text": "good"}\n{"text": "' + b"a" * (1 << 20) + b'"}\n')
    with pytest.raises(UserError, match=r"line 2: longer than 1 MiB"):
        read(path)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (r"a\ud800b", "a\ufffdb"),
        (r"a\udc00b", "a\ufffdb"),
        (r"a\ud800", "a\ufffd"),
        (r"\ud83d\ude00", "😀"),
        (r"\ufeffa", "\ufeffa"),
    ],
)
def test_half_a_surrogate_pair_is_replaced(written: str, meant: str, tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.jsonl", f'{{"text": "{written}"}}'.encode())) == [meant]


PACKED = gzip.compress(bytes(range(97, 123)) * 100, mtime=0)


@pytest.mark.parametrize(
    "content",
    [
        b"plain text",
        PACKED[:-9],
        PACKED[:12],
        PACKED[:-8] + b"\0\0\0\0" + PACKED[-4:],  # another checksum
        PACKED[:10] + b"\xff" * 20 + PACKED[30:],
        PACKED + b"more",
    ],
    ids=["plain", "no end", "cut short", "checksum", "scrambled", "more"],
)
def test_a_damaged_gz_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.txt\.gz is a damaged \.gz file: .+ Fetch it again"):
        read(tmp_path / "a.txt.gz")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("text:missing", r"there is no file or folder missing\."),
        ("text:empty", r"the folder empty has no text in it: known are \.txt \.md \.py \.jsonl, each also"),
        ("text:a.png", r"cannot read a\.png: known are \.txt \.md \.py \.jsonl, each also as \.gz\."),
        ("text:a.gz", r"cannot read a\.gz: known are"),
        ("a.png", r"to read the files of a\.png say text:a\.png\."),
        ("shakespear", r"unknown source 'shakespear'\. Did you mean shakespeare\? The sources are stdlib,"),
        ("zzz", r"unknown source 'zzz'\. The sources are stdlib, shakespeare, text:PATH, shards:PATH\."),
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
    assert source.size > 5_000_000
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
