"""Inputs of a few hundred kilobytes that took minutes: each is read in time that grows with its size."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from overnight.data.readers import read_file
from overnight.data.stackexchange import is_hostile
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
}


@pytest.mark.parametrize("name", POSTS)
def test_a_post_of_any_html(name: str) -> None:
    code = "from overnight.data.stackexchange import converter\n"
    code += f"from tests.data.test_hostile_posts import POSTS\nprint(converter()(POSTS[{name!r}])[-4:])"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(["src", "."])}
    root = Path(__file__).parent.parent.parent
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=MINUTE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize(
    "html", ["<p>one</p>\n<pre><code>a\n</code></pre>", "<ul><li>a</li></ul>" * 500, "a < b"]
)
def test_a_usual_post_is_not_called_hostile(html: str) -> None:
    assert not is_hostile(html)


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
