"""A dump written as Stack Exchange writes them, and documents written out by hand."""

import contextlib
import sqlite3
import tracemalloc
from collections.abc import Iterator
from html import escape
from pathlib import Path
from xml.sax.saxutils import quoteattr

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight.data import stackexchange
from overnight.data.documents import find
from overnight.data.manifest import Data
from overnight.data.prepare import prepare
from overnight.errors import Failure, UserError

HEAD = '\ufeff<?xml version="1.0" encoding="utf-8"?>\n<posts>\n'


def row(number: int, kind: int, body: str, **attributes: object) -> str:
    values = {"Id": number, "PostTypeId": kind, "Body": body} | attributes
    return f"  <row {' '.join(f'{name}={quoteattr(str(value))}' for name, value in values.items())} />\n"


def dump(folder: Path, *rows: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "Posts.xml").write_text(HEAD + "".join(rows) + "</posts>\n", encoding="utf-8")
    return folder


def question(number: int, title: str, body: str, **attributes: object) -> str:
    return row(number, 1, body, Title=title, ContentLicense="CC BY-SA 4.0", **attributes)


def answer(number: int, parent: int, score: int, body: str, **attributes: object) -> str:
    return row(number, 2, body, ParentId=parent, Score=score, **attributes)


def documents(folder: Path) -> list[str]:
    source = find(f"stackexchange:{folder}", downloads=folder)
    source.begin(folder / "scratch")
    return [piece.text for piece in source]


def test_a_question_is_a_document_with_its_answers_by_score(tmp_path: Path) -> None:
    folder = dump(
        tmp_path,
        answer(3, 7, 1, "<p>Before its question.</p>"),
        question(7, "Why is it <dark> & cold?", "<p>It is <em>night</em>,\r\nand I wonder.</p><p>Why?</p>"),
        answer(8, 7, -2, "<p>Because.</p>"),
        question(5, "Answered by nobody", "<p>Hello?</p>"),
        answer(9, 7, 30, "<p>The sun has set.</p>"),
        answer(10, 7, 30, "<p>As 9 says.</p>"),
        row(11, 5, "<p>A tag wiki.</p>"),
        answer(12, 999, 5, "<p>To a question that is not here.</p>"),
    )
    assert documents(folder) == [
        "# Answered by nobody\n\nHello?\n",
        "# Why is it <dark> & cold?\n\nIt is *night*,\nand I wonder.\n\nWhy?\n\n"
        "## Answer\n\nThe sun has set.\n\n## Answer\n\nAs 9 says.\n\n"
        "## Answer\n\nBefore its question.\n\n## Answer\n\nBecause.\n",
    ]


def markdown(html: str) -> str:
    return stackexchange.converter()(html)


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ("<p>snake_case * 2 [sic] 1. #x</p>", "snake_case * 2 [sic] 1. #x"),
        ("<p>a <code>b_c*</code> d</p>", "a `b_c*` d"),
        ("<p>a <code>`b`</code></p>", "a `` `b` ``"),
        ('<p>see <a href="https://a.b/c?d=e&amp;f">this</a></p>', "see [this](https://a.b/c?d=e&f)"),
        ('<p>so <img src="https://i.imgur.com/x.png" alt="a cat"></p>', "so a cat"),
        ("<ul><li>one</li><li>two</li></ul>", "- one\n- two"),
        (
            '<ol start="9"><li>nine<br>or so</li><li><p>ten</p><ul><li>a</li></ul></li></ol>',
            "9. nine  \n   or so\n10. ten\n\n    - a",
        ),
        (
            "<table><thead><tr><th>a</th></tr></thead><tbody><tr><td>1</td></tr><tr><td>2</td></tr></tbody></table>",
            "| a |\n| --- |\n| 1 |\n| 2 |",
        ),
        ("<h2>Head</h2><p>é漢😀&nbsp;&lt;b&gt;</p>", "## Head\n\né漢😀\xa0<b>"),
        ("<blockquote><p>said</p></blockquote>", "> said"),
        ("<p>unclosed <b>bold", "unclosed **bold**"),
        ("", ""),
    ],
)
def test_html_becomes_plain_markdown(html: str, expected: str) -> None:
    assert markdown(html) == expected


CODE = st.text(st.sampled_from("ab_*`~#<>&\\\"' \t\n-=|[]()é漢0."), min_size=1, max_size=60)


@given(code=CODE)
def test_code_stays_what_it_was(code: str) -> None:
    """Between fences that are longer than any inside."""
    html = f"<p>before</p><pre><code>{escape(code)}</code></pre><p>after</p>"
    text = markdown(html)
    fence = "```"
    while fence in code:
        fence += "`"
    assert text == f"before\n\n{fence}\n{code.strip(chr(10))}\n{fence}\n\nafter"


def test_tags_inside_one_another_without_end_are_read_as_text() -> None:
    assert markdown("<div>" * 20_000 + "deep" + "</div>" * 20_000) == "deep"


def test_what_the_manifest_says_of_a_dump(tmp_path: Path) -> None:
    posts = [
        question(
            i, f"No. {i}", f"<p>text {i} and more of it</p>", CreationDate=f"2024-03-{i:02d}T08:00:00.123"
        )
        for i in range(1, 31)
    ]
    posts += [answer(100 + i, i, i, "<p>yes</p>", ContentLicense="CC BY-SA 3.0") for i in range(1, 11)]
    posts += [answer(200, 999, 1, "<p>to nobody</p>", CreationDate="2025-01-01", ContentLicense="other")]
    posts += [answer(201, 1, 1, "<p>no</p>")]
    folder = dump(tmp_path / "night.stackexchange.com", *posts)
    made = prepare(f"stackexchange:{folder}", tmp_path / "data", "gpt2", 1, 10**8).manifest
    assert made.details == {
        "site": "night.stackexchange.com",
        "dump": "2024-03-30",
        "licences": {"CC BY-SA 3.0": 10, "CC BY-SA 4.0": 30, "unknown": 1},
        "questions": 30,
        "answers": 11,
    }
    assert made.documents == 30
    assert Data(tmp_path / "data").manifest == made
    assert not list(tmp_path.glob("data/*.sqlite*"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('<!DOCTYPE posts [<!ENTITY a "b">]>\n<posts><row Id="1"/></posts>', "declares entities or a DTD"),
        ('<!DOCTYPE posts SYSTEM "file:///etc/passwd">\n<posts/>', "declares entities or a DTD"),
        ("<posts>\n" + question(1, "a", "b"), r"is damaged XML \(no element found: line 3"),
        ("<posts>\n" + question(1, "a", "b")[:-9], r"is damaged XML \(.*line 2"),
        ("not XML", r"is damaged XML \(syntax error: line 1"),
        ("", r"is damaged XML \(no element found"),
        (
            "<posts>" + question(1, "a", "b") + '<row PostTypeId="1"/></posts>',
            r"row 2 is no post: KeyError 'Id'",
        ),
        ('<posts><row Id="x" PostTypeId="1"/></posts>', r"row 1 is no post: ValueError .*'x'"),
        ('<posts><row Id="1"/></posts>', r"row 1 is no post: KeyError 'PostTypeId'"),
    ],
)
def test_what_is_no_dump_is_refused(content: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "Posts.xml").write_text(content)
    with pytest.raises(UserError, match=says):
        prepare(f"stackexchange:{tmp_path}", tmp_path / "data", "gpt2", 1, 10**8)
    assert [path.name for path in tmp_path.iterdir()] == ["Posts.xml"]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("nowhere", r"there is no nowhere"),
        ("empty", r"there is no empty/Posts\.xml"),
        ("a.7z", r"is packed: unpack it"),
        ("a.txt", r"is no \.xml file"),
    ],
)
def test_a_path_without_posts_is_refused(
    path: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    for name in ("a.7z", "a.txt"):
        Path(name).write_text("x")
    with pytest.raises(UserError, match=says):
        find(f"stackexchange:{path}", downloads=tmp_path)


def many(count: int) -> Iterator[str]:
    for i in range(1, count + 1):
        yield question(2 * i, f"No. {i}", "<p>" + "the night is long. " * 50 + "</p>")
        yield answer(2 * i + 1, 2 * i, 1, "<p>" + "and dark. " * 50 + "</p>")


def test_memory_does_not_grow_with_the_dump(tmp_path: Path) -> None:
    peaks = []
    for count in (2_000, 20_000):
        folder = dump(tmp_path / str(count), *many(count))
        tracemalloc.start()
        rows = sum(1 for _ in stackexchange.read_posts(folder / "Posts.xml"))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert rows == 2 * count
    assert peaks[1] < peaks[0] + 1_000_000


def test_it_goes_on_after_the_posts_were_brought_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at the first document: the second time, Posts.xml is not read again."""
    source = f"stackexchange:{dump(tmp_path / 'dump', *many(150))}"
    with monkeypatch.context() as patch:
        patch.setattr(stackexchange, "converter", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(source, tmp_path / "data", "gpt2", 1, 10**8)
    with monkeypatch.context() as patch:
        patch.setattr(stackexchange, "collect", lambda *_: 1 / 0)
        prepare(source, tmp_path / "data", "gpt2", 1, 10**8)
    prepare(source, tmp_path / "undisturbed", "gpt2", 1, 10**8)
    assert Data(tmp_path / "data").fingerprint == Data(tmp_path / "undisturbed").fingerprint


@pytest.mark.parametrize("what", ["view", "table", "junk", "link"])
def test_a_database_that_somebody_planted_is_collected_anew(what: str, tmp_path: Path) -> None:
    """A view may compute without end, and what a link leads to is not ours."""
    source = find(f"stackexchange:{dump(tmp_path / 'dump', *many(150))}", downloads=tmp_path)
    source.begin(tmp_path / "scratch")
    expected = [piece.text for piece in source]
    [database] = (tmp_path / "scratch").iterdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(database.read_bytes())
    database.unlink()
    if what == "link":
        database.symlink_to(elsewhere)
    elif what == "junk":
        database.write_bytes(b"junk")
    else:
        made = "CREATE TABLE posts (question, kind, score, id, title, body)"
        if what == "view":
            endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x FROM c) SELECT x FROM c"
            made = f"CREATE VIEW posts AS {endless}"
        with contextlib.closing(sqlite3.connect(database)) as connection:
            connection.execute(made)
    again = find(source.name, downloads=tmp_path)
    again.begin(tmp_path / "scratch")
    assert [piece.text for piece in again] == expected
    assert not database.is_symlink()


def test_a_scratch_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "treasure").mkdir()
    (tmp_path / "scratch").symlink_to("treasure")
    source = find(f"stackexchange:{dump(tmp_path / 'dump', *many(3))}", downloads=tmp_path)
    with pytest.raises(OSError, match="it is a symbolic link"):
        source.begin(tmp_path / "scratch")
    assert not any((tmp_path / "treasure").iterdir())


def test_a_disk_full_of_posts_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real database that may not grow: SQLite's own limit on pages is what a full disk is to it."""
    connect = sqlite3.connect

    def small(path: Path) -> sqlite3.Connection:
        connection = connect(path)
        connection.execute("PRAGMA max_page_count = 20")
        return connection

    monkeypatch.setattr(sqlite3, "connect", small)
    source = f"stackexchange:{dump(tmp_path / 'dump', *many(150))}"
    with pytest.raises(Failure, match=r"preparing .*: the disk is full\. Free some space"):
        prepare(source, tmp_path / "data", "gpt2", 1, 10**8)


def test_skipped_questions_are_the_first_ones(tmp_path: Path) -> None:
    source = find(f"stackexchange:{dump(tmp_path, *many(5))}", downloads=tmp_path)
    source.begin(tmp_path / "scratch")
    everything = list(source.pieces(0))
    assert source.progress == 1
    assert list(source.pieces(0, 3)) == everything[3:]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="a system with /proc")
def test_a_dump_that_cannot_be_read_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "Posts.xml").symlink_to("/proc/self/status")  # others of its kind never end
    with pytest.raises(UserError, match=r"^cannot read .*Posts\.xml: [^\n]*$"):
        documents(tmp_path)
