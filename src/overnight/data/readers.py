"""A file -> its documents, as pieces of text small enough to hold.

.txt .md .py    one document a file
.jsonl          one a line: {"text": ...}
.parquet        one a row: the column "text"

All but .parquet may be packed as .gz or .zst.
"""

import codecs
import contextlib
import errno
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from overnight import bounded_json
from overnight.data.selection import some
from overnight.errors import UserError
from overnight.files import open_regular, reason

BLOCK = 1 << 20  # bytes read at a time, and the characters of a piece
LONGEST_RUN = 16 << 20  # characters without a space after which a piece is cut all the same
LONGEST_LINE = 64 << 20  # bytes of a line of .jsonl
MOST_VALUES = 1 << 20  # of a line: 64 MiB of `[],` would take 1.5 GB
ROWS = 256  # of a parquet file decoded at a time
MOST_TEXT = 250  # times a packed file's size: text packs 3 to 20 times smaller, a bomb 1,000 times and more
SMALL = 64 << 20  # bytes of a file that may not need gigabytes of memory
ANY_TEXT = 64 << 20  # characters that a small file may unpack to, whatever its size

# Everything up to the last visible character that a space or newline follows: found from the end.
LAST_WORD = re.compile(r".*\S(?=[ \n])", re.DOTALL)

ONE_DOCUMENT = (".txt", ".md", ".py")
ONE_A_LINE = (".jsonl", ".json")  # the hub has lines under both names
ONE_A_ROW = (".parquet",)
SUFFIXES = (*ONE_DOCUMENT, ".jsonl", *ONE_A_ROW)  # of a folder; .json there is seldom text
PACKED = (".gz", ".zst")
KNOWN = f"{' '.join(SUFFIXES)}, each also as .gz or .zst"


@dataclass(frozen=True)
class Piece:
    """Part of a document. Pieces of one document follow each other; `first` marks where one begins.

    Cuts lie before a space or newline that follows a visible character, where GPT-2's pattern always ends
    a word, so the tokens of the pieces are the tokens of the whole.
    """

    text: str
    first: bool


def kind(path: Path) -> str:
    """'.txt' of 'a.txt' and 'a.txt.gz'."""
    name = path.name.lower()
    for packing in PACKED:
        name = name.removesuffix(packing)
    return Path(name).suffix


def read_file(path: Path, at: Callable[[int], object] = lambda position: None) -> Iterator[Piece]:
    """The pieces of one file; `at` is told how many of its bytes on disk have been read."""
    packed = path.suffix.lower() in (*PACKED, *ONE_A_ROW)
    characters = 0
    try:
        with open_regular(path) as raw:
            most = ANY_TEXT + MOST_TEXT * path.stat().st_size
            read = reader(path)
            with contextlib.closing(unpacked(raw, path, most)) as file:
                for piece in read(file, path):
                    characters += len(piece.text)
                    if packed and characters > most:
                        raise bomb(path)
                    at(raw.tell())
                    yield piece
    except (EOFError, zlib.error) as error:
        raise damaged(path, error) from None
    except PermissionError:
        raise UserError(f"no permission to read {path}.") from None
    except OSError as error:
        if error.errno == errno.EINVAL and error.filename == str(path):
            raise UserError(f"{path} cannot be read: {reason(error)}.", "Leave it out.") from None
        if error.errno is not None:  # the disk's, not the packing's
            raise
        raise damaged(path, error) from None


def reader(path: Path) -> Callable[[IO[bytes], Path], Iterator[Piece]]:
    if kind(path) in ONE_A_ROW:
        if path.suffix.lower() in PACKED:
            raise UserError(f"{path}: parquet is packed in itself; unpack the {path.suffix} around it.")
        return read_rows
    return read_lines if kind(path) in ONE_A_LINE else read_whole


def unpacked(raw: IO[bytes], path: Path, most: int) -> IO[bytes]:
    """The content of a file that is open, a stream; refused when over `most` bytes have been unpacked."""
    packing = path.suffix.lower()
    if packing == ".gz":
        return cast(IO[bytes], io.BufferedReader(Bounded(gzip.GzipFile(fileobj=raw), path, most), BLOCK))
    if packing == ".zst":
        # pyarrow's, because it tells a file that is cut short from one that ends.
        stream = pyarrow(path).CompressedInputStream(raw, "zstd")
        return cast(IO[bytes], io.BufferedReader(Bounded(stream, path, most), BLOCK))
    return raw


class Bounded(io.RawIOBase):
    """What a packed file unpacks to, also where no text comes of it: a bomb of empty lines, say."""

    def __init__(self, stream: Any, path: Path, most: int):
        self.stream, self.path, self.left = stream, path, most

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self.stream.close()  # zstd's window is up to 128 MiB
        super().close()

    def readinto(self, buffer: Any) -> int:
        block = self.stream.read(len(buffer))
        self.left -= len(block)
        if self.left < 0:
            raise bomb(self.path)
        buffer[: len(block)] = block
        return len(block)


def bomb(path: Path) -> UserError:
    return UserError(
        f"{path} holds over {MOST_TEXT} times its own size in text: no text packs so well.",
        "Leave it out, or unpack it and look at it.",
    )


def read_whole(file: IO[bytes], path: Path) -> Iterator[Piece]:
    """One document a file."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    text, searched, first, position = "", 0, True, 0
    while True:
        block = file.read(BLOCK)
        try:
            text += decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            # The decoder holds back the start of a character that the block before ended in.
            where = position + error.start - (len(error.object) - len(block))
            raise not_utf8(path, f"byte {where:,}") from None
        position += len(block)
        if not block:
            break
        end = cut(text, searched=searched)
        if end:
            yield Piece(text[:end], first)
            text, first = text[end:], False
        if end or len(text) >= BLOCK:
            searched = len(text)
    if text:
        yield Piece(text, first)


def read_lines(file: IO[bytes], path: Path) -> Iterator[Piece]:
    """One document a line, an object whose "text" is a string; other fields and empty lines are skipped."""
    number = 0
    while line := file.readline(LONGEST_LINE):
        number += 1
        if len(line) == LONGEST_LINE:
            raise UserError(f"{path}, line {number}: longer than {LONGEST_LINE >> 20} MiB; split it.")
        if not line.strip():
            continue
        try:
            text = bounded_json.parse(line, MOST_VALUES)["text"]
        except UnicodeDecodeError:
            raise not_utf8(path, f"line {number:,}") from None
        except bounded_json.TooManyValues as error:
            raise UserError(f"{path}, line {number}: {error}; leave it out.") from None
        except (ValueError, KeyError, TypeError, RecursionError):
            text = None
        if not isinstance(text, str):
            raise UserError(f'{path}, line {number}: not a JSON object with a string "text".')
        # Half a surrogate pair ("\ud800") is valid JSON and no character; UTF-8 cannot hold it.
        yield from pieces(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


def read_rows(file: IO[bytes], path: Path) -> Iterator[Piece]:
    """One document a row, the string in the column "text"; a row without one (null) is no document. Of a
    row group, a page of that column is in memory at a time."""
    types = pyarrow(path).types
    import pyarrow.parquet as parquet

    row = 0
    try:
        table = parquet.ParquetFile(file, buffer_size=BLOCK)
        columns = {field.name: field.type for field in table.schema_arrow}
        if "text" not in columns:
            raise UserError(f'{path} has no column "text", but {some(columns)}: rename the right one.')
        held = columns["text"]
        held = held.value_type if types.is_dictionary(held) else held
        if not (types.is_string(held) or types.is_large_string(held) or types.is_string_view(held)):
            raise UserError(f'{path}: the column "text" holds {held}, not strings.')
        check_size(path, table.metadata)
        if path.stat().st_size <= SMALL:  # a string that 256 rows share is in memory once; reading is slower
            table = parquet.ParquetFile(
                file, metadata=table.metadata, buffer_size=BLOCK, read_dictionary=["text"]
            )
        for group in range(table.num_row_groups):
            if only_nulls(table.metadata.row_group(group)):
                row += table.metadata.row_group(group).num_rows
                continue
            for batch in table.iter_batches(ROWS, row_groups=[group], columns=["text"]):
                column, first = batch.column(0), row + 1  # a small file may have millions of nulls
                for number in column.is_valid().to_numpy(zero_copy_only=False).nonzero()[0].tolist():
                    row = first + number
                    yield from pieces(column[number].as_py())
                row = first + batch.num_rows - 1
    except UnicodeDecodeError:
        raise not_utf8(path, f"row {row:,}") from None
    except (ValueError, LookupError, MemoryError, NotImplementedError) as error:  # what pyarrow's own are
        raise damaged(path, error) from None


def check_size(path: Path, metadata: Any) -> None:
    """Raise UserError for more rows or bytes than a file of its size has, however well they pack: a page is
    unpacked as a whole."""
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    size = sum(text_column(group).total_uncompressed_size for group in groups)
    if max(metadata.num_rows, size) > ANY_TEXT + MOST_TEXT * path.stat().st_size:
        raise bomb(path)


def only_nulls(group: Any) -> bool:
    """Whether a row group's statistics say that no row has a text."""
    told = text_column(group).statistics
    return told is not None and told.has_null_count and told.null_count == group.num_rows


def text_column(group: Any) -> Any:
    """What a row group's metadata say of the column "text". Raises ValueError where that is something else
    than the schema's: asked for statistics of another type, pyarrow would end the process."""
    for number in range(group.num_columns):
        column = group.column(number)
        if column.path_in_schema == "text" and column.physical_type == "BYTE_ARRAY":
            return column
    raise ValueError('a row group has no column "text" of strings')


def pieces(text: str) -> Iterator[Piece]:
    """A document that is in memory, cut up."""
    start = 0
    while start < len(text):
        end = len(text)
        if end - start > 2 * BLOCK:
            end = cut(text, start, start + 2 * BLOCK) or end
        yield Piece(text[start:end], start == 0)
        start = end


def cut(text: str, start: int = 0, stop: int | None = None, searched: int = 0) -> int:
    """Return where text[start:stop] may be cut (see Piece), as far back as possible; 0 where more should be
    read first. There is no such place before `searched`."""
    stop = len(text) if stop is None else stop
    if stop - start < BLOCK:
        return 0
    if found := LAST_WORD.match(text, max(start, searched - 1), stop):
        return found.end()
    return stop if stop - start >= LONGEST_RUN else 0


def pyarrow(path: Path) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise UserError(f"reading {path.name} needs an extra: pip install 'overnight[data]'.") from None
    return pyarrow


def damaged(path: Path, error: BaseException) -> UserError:
    reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(". ")
    return UserError(
        f"{path} is a damaged {path.suffix.lower()} file: {reason}. Fetch it again or leave it out."
    )


def not_utf8(path: Path, where: str) -> UserError:
    return UserError(
        f"{path} is not UTF-8 text (at {where}).",
        f"Convert it (iconv -f latin1 -t utf-8 {path.name} > new.txt) or leave it out.",
    )
