"""A dump of a Stack Exchange site (archive.org/details/stackexchange) -> a document a question.

Posts.xml has questions and answers mixed, by their dates, with HTML inside. It is streamed once into a
database on the disk, which brings each question's answers together; then every question is written as
Markdown: its title, its text, its answers from the highest score down. Questions come by their number. Left
out are answers to questions that the dump does not have and posts of other kinds (tag wikis, for one).
"""

import contextlib
import errno
import os
import sqlite3
from collections.abc import Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Any
from xml.parsers import expat

from overnight.data.documents import Source
from overnight.data.post_markdown import converter, is_hostile
from overnight.data.readers import Piece
from overnight.data.xml_rows import DocumentType, xml_rows
from overnight.errors import UserError
from overnight.files import open_regular, reason, subfolder, sync
from overnight.terminal import Status

QUESTION, ANSWER = 1, 2  # PostTypeId
TABLE = "CREATE TABLE posts (question, kind, score, id, title, body, licence, date)"
INDEX = "CREATE UNIQUE INDEX in_order ON posts (question, kind, score DESC, id)"
IN_ORDER = "ORDER BY question, kind, score DESC, id"
HAS_QUESTION = (
    f"EXISTS (SELECT 1 FROM posts asked WHERE asked.question = posts.question AND kind = {QUESTION})"
)
BODIES = f"SELECT body FROM posts WHERE {HAS_QUESTION}"


def find_posts(path: Path) -> Path:
    """The Posts.xml that a path names, itself or by its folder."""
    posts = path / "Posts.xml" if path.is_dir() else path
    if path.suffix == ".7z":
        raise UserError(f"{path} is packed: unpack it (7z x {path.name}) and name the folder.")
    if not posts.is_file():
        raise UserError(f"there is no {posts}: stackexchange:PATH is a dump's Posts.xml or its folder.")
    if posts.suffix != ".xml":
        raise UserError(f"{posts} is no .xml file: stackexchange:PATH is a dump's Posts.xml or its folder.")
    return posts


class Dump(Source):
    """The questions of one Posts.xml."""

    def __init__(self, name: str, posts: Path):
        super().__init__(name, (posts,))
        self.questions = self.done = 0
        self._database: sqlite3.Connection

    def begin(self, folder: Path) -> None:
        """Bring the posts together in `folder`, unless they are."""
        database = subfolder(folder.parent, folder.name) / f"{self.fingerprint[:16]}.sqlite"
        if not is_collected(database):
            database.unlink(missing_ok=True)
            aside = database.with_suffix(".partial")
            aside.unlink(missing_ok=True)
            collect(self.paths[0], aside)
            os.replace(aside, database)
        self._database = sqlite3.connect(database)
        ((self.questions,),) = self._select(f"SELECT count(*) FROM posts WHERE kind = {QUESTION}")

    def pieces(self, number: int, skip: int = 0) -> Iterator[Piece]:
        """A piece a question, however long: no site lets posts grow beyond 30,000 characters."""
        markdown = converter()
        rows = self._select(f"SELECT question, kind, title, body FROM posts {IN_ORDER}", (int, int, str, str))
        asked = (
            posts
            for _, group in groupby(rows, key=lambda row: row[0])
            if (posts := list(group))[0][1] == QUESTION
        )
        for self.done, posts in enumerate(islice(asked, skip, None), skip + 1):
            _, _, title, _ = posts[0]
            bodies = [markdown(body) for _, _, _, body in posts]
            yield Piece("\n\n## Answer\n\n".join([f"# {title}\n\n{bodies[0]}", *bodies[1:]]) + "\n", True)

    def _select(self, query: str, kinds: tuple[type, ...] = ()) -> Iterator[tuple]:
        """The rows of a query, each of values of `kinds`. The database may be what an earlier command left:
        raises UserError where it is damaged."""
        try:
            for row in self._database.execute(query):
                if any(type(value) is not kind for value, kind in zip(row, kinds, strict=False)):
                    raise sqlite3.DatabaseError("a value is of another kind")
                yield row
        except sqlite3.Error as error:
            raise UserError(
                f"the posts brought together from {self.paths[0]} are damaged ({error}).",
                "Give the command once more: it begins anew.",
            ) from None

    def part(self, rank: int, world_size: int) -> Source:
        raise UserError(f"{self.name} is one file: use `overnight prepare`.")

    @property
    def progress(self) -> float:
        return self.done / max(1, self.questions)

    def details(self) -> dict[str, Any]:
        """The site, the day of its newest post, and the licences of the posts that were used."""
        licences = self._select(
            f"SELECT licence, count(*) FROM posts WHERE {HAS_QUESTION} GROUP BY licence ORDER BY licence",
            (str, int),
        )
        ((newest, used),) = self._select(f"SELECT max(date), count(*) FROM posts WHERE {HAS_QUESTION}")
        simplified = sum(is_hostile(body) for (body,) in self._select(BODIES, (str,)))
        return {
            "site": self.paths[0].resolve().parent.name,
            "dump": str(newest or "")[:10],
            "licences": dict(licences),
            "questions": self.questions,
            "answers": used - self.questions,
            **({"simplified_posts": simplified} if simplified else {}),
        }


def is_collected(database: Path) -> bool:
    """Whether the file is a database with the table and index of `collect`. Anything else is collected again:
    a view could compute forever, and a link could point to another file."""
    if database.is_symlink() or not database.is_file():
        return False
    try:
        with contextlib.closing(sqlite3.connect(database)) as connection:
            made = [sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master ORDER BY rowid")]
    except sqlite3.Error:
        return False
    return made == [TABLE, INDEX]


def collect(posts: Path, database: Path) -> None:
    """Posts.xml -> a table of questions and answers, with an index in the order of the documents."""
    os.environ.setdefault("SQLITE_TMPDIR", str(database.parent))  # where the index is sorted: there is room
    connection = sqlite3.connect(database)
    try:
        connection.execute("PRAGMA journal_mode = OFF")  # a kill leaves a file that nobody opens
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(TABLE)
        connection.executemany("INSERT INTO posts VALUES (?, ?, ?, ?, ?, ?, ?, ?)", read_posts(posts))
        connection.execute(INDEX)
        connection.commit()
    except sqlite3.IntegrityError:
        raise UserError(f"{posts} has the same post twice. Unpack the dump again.") from None
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise OSError(errno.ENOSPC, "the disk is full", str(database)) from None
        raise
    finally:
        connection.close()
    sync(database)


def read_posts(posts: Path) -> Iterator[tuple]:
    """The rows of the table, streamed: memory does not grow with the file."""
    status, number = Status(), 0
    try:
        size = posts.stat().st_size
        with open_regular(posts) as file:
            for number, row in enumerate(xml_rows(file), 1):
                yield from row_of(row, f"{posts}, row {number}")
                done = file.tell() / max(1, size)
                status.update(lambda done=done: f"reading {posts.name}: {100 * done:.0f}%")  # type: ignore[misc]
    except DocumentType:
        raise UserError(f"{posts} declares entities or a DTD, which no dump has: it is not read.") from None
    except (expat.ExpatError, LookupError, ValueError) as error:  # the last two: its encoding
        raise UserError(f"{posts} is damaged XML ({error}). Unpack it again.") from None
    except OSError as error:
        raise UserError(f"cannot read {posts}: {reason(error)}.") from None
    status.clear()


def row_of(post: dict[str, str], where: str) -> Iterator[tuple]:
    """The row of a question or an answer; nothing for other kinds."""
    try:
        kind = int(post["PostTypeId"])
        if kind in (QUESTION, ANSWER):
            number = int(post["Id"])
            question = number if kind == QUESTION else int(post["ParentId"])
            score = int(post.get("Score", 0))
            if max(map(abs, (number, question, score))) >= 2**63:
                raise ValueError("a number is too large")  # for the database
            yield (
                question, kind, score, number, post.get("Title", "Untitled"),
                post.get("Body", ""), post.get("ContentLicense", "unknown"), post.get("CreationDate", ""),
            )  # fmt: skip
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{where} is no post: {type(error).__name__} {str(error)[:100]}. Unpack the dump again."
        ) from None
