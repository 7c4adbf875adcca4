"""Readers of text and of questions: what `prepare` and `eval` are given."""

import gzip
import io
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from xml.sax.saxutils import quoteattr

import pyarrow as pa
import pyarrow.parquet as parquet
import zstandard
from hypothesis.strategies import SearchStrategy
from tests.fuzzing import Reader
from tests.mutations import binary, json_lines, text_file

from overnight.data import readers, stackexchange, tokens
from overnight.evals import hellaswag, lambada, perplexity
from overnight.evals.continuations import encode_pair

LINES = b"".join(
    json.dumps({"text": f"A document, {i}.\nWith two lines and an é.", "meta": {"id": i}}).encode() + b"\n"
    for i in range(3)
)
QUESTION = {
    "ind": 1, "activity_label": "Cooking", "ctx_a": "A man stirs.", "ctx_b": "he", "ctx": "A man stirs. he",
    "endings": ["eats.", "sleeps [step] well.", "sings.", "walks."], "label": "2",
}  # fmt: skip
PASSAGES = [{"text": "The last word is dark"}, {"context": "The last word is", "continuation": " dark"}]
BODY = "&lt;p&gt;Why &lt;b&gt;so&lt;/b&gt;?&lt;/p&gt;"
POST = f'  <row Id="{{}}" PostTypeId="{{}}" {{}}="{{}}" Score="3" Body="{BODY}" />'
HTML = """<p>a</p> <![x <!DOCTYPE <!-- </p> <ol start="½"><li>x</ol> <ol start="²"><li>y</ol> <pre>a```b</pre>
<td colspan="²">x</td> <td colspan="99999999999">x</td> <table><tr><td colspan=1000>x <img src=x> <h9> <?php
<a href="x" title="y">z</a> <svg> <script>if</script> &#0; &#xD800; &#99999999999; <h1> <blockquote>"""
BODIES = [*HTML.split(" "), HTML, "<div>" * 3000, "<blockquote>" * 600, "<ol><li>" * 300]
FRAGMENTS = [
    "&#xD800;", "&#0;", "&lol;", "<!DOCTYPE x [<!ENTITY a 'b'>]>", "<row/>", "</posts>", "<posts>", "]]>",
    "<?x?>", 'encoding="utf-7"', 'encoding="x"', "9" * 20, "9" * 5000, "-1", "0x1", "½", "1e3", "\0",
    *(f'<row Id="{i}" PostTypeId="1" Title="t" Body={quoteattr(body)}/>' for i, body in enumerate(BODIES)),
]  # fmt: skip


@cache
def gpt2() -> tokens.Tokenizer:
    return tokens.gpt2()


def file_named(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def read_text(path: Path) -> None:
    ended: list[int] = []
    found = list(readers.read_file(path, ended.append))
    assert not found or found[0].first
    assert all(piece.text for piece in found)
    "".join(piece.text for piece in found).encode("utf-8")
    assert ended == sorted(ended)


def read_perplexity(path: Path) -> None:
    row = perplexity.read(path, gpt2())
    assert len(row.read(0, len(row))) > 1


def read_hellaswag(path: Path) -> None:
    tokenizer = gpt2()
    questions = hellaswag.read(path)
    for question in questions:
        assert question.label in range(4)
        for style in ("completion", "lm-eval"):
            item = hellaswag.to_item(question, style, tokenizer)
            assert len(item.continuations) == 4
    assert len(hellaswag.read(path, 1)) == 1


def read_lambada(path: Path) -> None:
    tokenizer = gpt2()
    for context, word in lambada.read(path):
        before, after = encode_pair(tokenizer, context, word)
        assert before
        assert after


def packed(valid: bytes, pack: Callable[[bytes], bytes]) -> SearchStrategy[bytes]:
    """The packing spoiled, or what is packed."""
    return binary(pack(valid), 20) | json_lines(valid).map(pack)


def zst(content: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(content)


def table() -> bytes:
    file = io.BytesIO()
    columns = {"text": ["one", "two\nlines", None, "é" * 50], "id": [1, 2, 3, 4]}
    parquet.write_table(pa.table(columns), file, compression="snappy", row_group_size=3)
    return file.getvalue()


def posts() -> bytes:
    rows = [
        POST.format(7, 1, "Title", "Why?"),
        POST.format(8, 2, "ParentId", "7"),
        POST.format(9, 2, "ParentId", "999"),
        POST.format(10, 1, "Title", "And then?"),
    ]
    head = '\ufeff<?xml version="1.0" encoding="utf-8"?>'
    return "\n".join([head, "<posts>", *rows, "</posts>", ""]).encode()


def read_posts(path: Path) -> None:
    scratch = path.with_name("scratch")
    shutil.rmtree(scratch, ignore_errors=True)
    source = stackexchange.Dump("dump", stackexchange.find_posts(path))
    source.begin(scratch)
    found = list(source)
    assert len(found) <= source.questions == source.details()["questions"]
    assert all(piece.first and piece.text for piece in found)


def make_database(folder: Path) -> Path:
    (folder / "Posts.xml").write_bytes(posts())
    stackexchange.Dump("dump", folder / "Posts.xml").begin(folder / "scratch")
    return next((folder / "scratch").glob("*.sqlite"))


def read_database(path: Path) -> None:
    """What an interrupted `prepare` left, read by the next."""
    source = stackexchange.Dump("dump", path.parent.parent / "Posts.xml")
    source.begin(path.parent)
    for piece in source:
        piece.text.encode("utf-8")
    json.dumps(source.details())


HELLASWAG = b"\n".join(json.dumps(QUESTION | {"label": label}).encode() for label in ("2", 0))
LAMBADA = "\n".join(map(json.dumps, PASSAGES)).encode()

READERS: dict[str, Reader] = {
    "txt": Reader(file_named("a.txt", LINES), read_text, binary),
    "perplexity": Reader(file_named("a.txt", LINES), read_perplexity, binary),
    "jsonl": Reader(file_named("a.jsonl", LINES), read_text, json_lines),
    "gz": Reader(
        file_named("a.jsonl.gz", gzip.compress(LINES)), read_text, lambda _: packed(LINES, gzip.compress)
    ),
    "zst": Reader(file_named("a.jsonl.zst", zst(LINES)), read_text, lambda _: packed(LINES, zst)),
    "parquet": Reader(file_named("a.parquet", table()), read_text, binary),
    "hellaswag": Reader(file_named("a.jsonl", HELLASWAG), read_hellaswag, json_lines),
    "lambada": Reader(file_named("a.jsonl", LAMBADA), read_lambada, json_lines),
    "stackexchange": Reader(file_named("Posts.xml", posts()), read_posts, lambda v: text_file(v, FRAGMENTS)),
    "stackexchange-database": Reader(make_database, read_database, lambda valid: binary(valid, 100)),
}
