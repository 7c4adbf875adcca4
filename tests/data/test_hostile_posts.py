"""Inputs of a few hundred kilobytes that took minutes: each is read in time that grows with its size."""

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from overnight.data.post_markdown import converter, is_hostile
from overnight.data.readers import read_file
from overnight.data.xml_rows import xml_rows
from overnight.errors import UserError
from overnight.weights import nanogpt

MINUTE = 60  # seconds; each of these takes under one
POSTS = {
    "backticks": "<pre><code>" + "`" * 200_000 + "</code></pre>",
    "unclosed tags": "<b>" * 60_000 + "text",
    "unclosed paragraphs": "<p>" * 60_000 + "text",
    "unclosed comments": "<!--" * 60_000 + "text",
    "half tags": "<a " * 60_000 + "text",
    "entities": "&#" * 100_000 + "text",
    "long": "<p>text</p>" * 100_000,
    "signs that are no tags": "<" * 900 + "a" * 280_000,
    "half closing tags": "</" * 900 + "text" * 50_000,
    "spaces": "<p>" + " " * 290_000 + "text</p>",
    "items": "<ol>" + "<li>x</li>" * 28_000 + "text",
    "numbers": "<ol>" + "<li>x</li>" * 19_000 + "text",
    "rows of a head": "<table><thead>" + "<tr><td>a</td></tr>" * 9900 + "text",
    "bodies of a table": "<table>" + "<tbody><tr><td>a</td></tr></tbody>" * 6600 + "text",
}
LINES = "a<br>" * 10_000
COSTLY = {
    "quotes": "<blockquote>" * 90 + "a\n" * 2000,
    "entities": "<blockquote>" * 90 + "a&#10;" * 2000,
    "definitions": "<dd>" * 90 + "a\n" * 2000,
    "long numbers": "<ol start=9999><li>" * 40 + "a\n" * 2000,
    "deep": "<div>" * 99 + LINES,
    "closed in a comment": "<div><!--</div>-->" * 99 + LINES,
    "closed by another name": "<div></p>" * 99 + LINES,
    "closed by a void tag": "<area><div></area>" * 99 + LINES,
    "closed by a part of the name": "<a:b></a>" * 99 + LINES,
    "closed before": "<p/><div></p>" * 99 + LINES,
    "tags": "<b>a</b>" * 37_000,
    "cells": "<table><tr><td>" * 30 + "<td>a" * 3000,
    "void tags": "<br>" * 10_000 + "</b>" * 10_000,
}
TABLE = "<div><table>\n<thead>\n<tr>\n<th>a</th>\n</tr>\n</thead>\n<tbody>\n{}</tbody>\n</table></div>"
USUAL = {
    "code": "<p>one</p>\n<pre><code>a\n</code></pre>",
    "lists": "<ul><li>a</li></ul>" * 500,
    "sign": "a < b",
    "long code": f"<ol><li><p>x</p><pre><code>{'    i = 1;' * 3}\n"
    + "}\n" * 14_000
    + "</code></pre></li></ol>",
    "long list": "<ul>\n" + "<li>a</li>\n" * 7000 + "</ul>",
    "list in a list": "<ol>\n" + "<li>a\n<ul>\n<li>b</li>\n<li>c</li>\n</ul></li>\n" * 2000 + "</ol>",
    "list of code": "<ol>\n"
    + "<li><p>a <code>b</code></p>\n<pre><code>c\nd\n</code></pre></li>\n" * 1000
    + "</ol>",
    "table": TABLE.format(("<tr>\n" + '<td style="text-align: right">1</td>\n' * 10 + "</tr>\n") * 500),
    "answer in quotes": "<blockquote>\n" * 12 + "<p>said</p>\n" + "</blockquote>\n" * 12,
    "long quote": "<blockquote>\n<blockquote>\n" + "<p>a</p>\n" * 5000 + "</blockquote>\n</blockquote>",
    "steps": "<ol>\n<li>a " * 8 + "</li>\n</ol>" * 8,
    "words in code": "<p>" + "<code>a</code> " * 7500 + "</p>",
}


@pytest.mark.parametrize("name", POSTS)
def test_a_post_of_any_html(name: str) -> None:
    code = "from overnight.data.post_markdown import converter\n"
    code += f"from tests.data.test_hostile_posts import POSTS\nprint(converter()(POSTS[{name!r}])[-4:])"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(["src", "."])}
    root = Path(__file__).parent.parent.parent
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=MINUTE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("name", COSTLY)
def test_of_a_post_that_would_cost_too_much_only_the_text_is_used(name: str) -> None:
    assert is_hostile(COSTLY[name])


@pytest.mark.parametrize("name", USUAL)
def test_a_usual_post_is_not_called_hostile(name: str) -> None:
    """The longest that 30,000 characters of Markdown become, and deeper nesting than people write."""
    assert not is_hostile(USUAL[name])


@pytest.mark.parametrize(
    "html",
    [
        "<table><tr>" + "<td colspan=1000>a</td>" * 250 + "</tr></table>",
        "<ol start=" + "9" * 4000 + "><li>" + "a<br>" * 2000 + "</ol>",
        "<blockquote>" * 9 + "a\n" * 2000,
        *COSTLY.values(),
    ],
)
def test_the_text_of_a_post_grows_with_its_html(html: str) -> None:
    assert len(converter()(html)) < 11 * len(html)


@pytest.mark.parametrize("statistics", [True, False])
def test_a_parquet_file_of_millions_of_nulls(statistics: bool, tmp_path: Path) -> None:
    path = tmp_path / "nulls.parquet"
    table = pa.table({"text": pa.nulls(20_000_000, pa.string())})
    pq.write_table(table, path, compression="zstd", write_statistics=statistics)
    assert path.stat().st_size < 1_000_000
    assert list(read_file(path)) == []


def test_nulls_between_texts_are_no_documents(tmp_path: Path) -> None:
    path = tmp_path / "some.parquet"
    pq.write_table(pa.table({"text": ["a", None, "b", None]}), path, row_group_size=2)
    assert [piece.text for piece in read_file(path)] == ["a", "b"]


def test_a_packed_checkpoint_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "ckpt.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"")
        archive.writestr("archive/data/0", bytes(50 << 20))
    with pytest.raises(UserError, match="what is in it is packed"):
        nanogpt.read(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<posts>" + b"<a>" * 3_000_000, "an element inside a row: line 1"),
        (b'<posts><row Body="' + b">" * (40 << 20), "over 33,554,432 bytes in one tag: line 1"),
        (b"<posts><!--" + b">" * (40 << 20), "over 33,554,432 bytes in one tag: line 1"),
    ],
)
def test_xml_that_is_no_dump_is_refused_before_it_is_read_to_its_end(content: bytes, said: str) -> None:
    file = io.BytesIO(content + b" " * (20 << 20))
    with pytest.raises(ValueError, match=said):
        list(xml_rows(file))
    assert file.tell() < len(file.getvalue()) - (10 << 20)


def test_the_start_of_a_long_tag_is_read_a_few_times_only() -> None:
    """The parser begins a tag again with each block: with blocks of 16 kB, 20 MB were read 600 times."""
    sizes: list[int] = []

    class Counted(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            sizes.append(size or -1)
            return super().read(size)

    content = b'<posts><row Body="' + b"x" * (20 << 20) + b'"/></posts>'
    assert [len(row["Body"]) for row in xml_rows(Counted(content))] == [20 << 20]
    assert len(sizes) < 25


SHARED = """
import sys
from pathlib import Path
from overnight.data.readers import read_file
from overnight.errors import UserError
try:
    sum(len(piece.text) for piece in read_file(Path(sys.argv[1])))
except UserError as error:
    print(error)
status = Path("/proc/self/status").read_text()
print(int(status.partition("VmHWM:")[2].split()[0]) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize(("length", "rows"), [(400_000_000, 1), (5_000_000, 400)])
def test_a_parquet_file_of_a_few_bytes_takes_little_memory(length: int, rows: int, tmp_path: Path) -> None:
    """Rows that share one string, and one page that unpacks to 400 MB."""
    path = tmp_path / "shared.parquet"
    table = pa.table({"text": ["a" * length] * rows})
    pq.write_table(table, path, compression="zstd", use_dictionary=rows > 1)
    assert path.stat().st_size < 100_000
    environment = os.environ | {"PYTHONPATH": "src"}
    command = [sys.executable, "-c", SHARED, str(path)]
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=MINUTE)
    assert "no text packs so well" in done.stdout, done.stderr
    assert int(done.stdout.split()[-1]) < 500  # MB; it was 1,600 and 2,600
