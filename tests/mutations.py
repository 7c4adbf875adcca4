"""Ways to spoil a file, as hypothesis strategies: bytes, fields of binary headers, any value of any JSON."""

import json
import struct
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

# What headers claim: lengths, counts and offsets of one, two, four and eight bytes.
NUMBERS = (0, 1, 2, 3, 127, 255, 256, 1000, 2**15, 2**16 - 1, 2**20, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
LONG_NUMBERS = (*NUMBERS, 2**33, 2**40, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1)

# Names that lead out of a folder, or nowhere.
NAMES = (
    "../outside.bin", "../outside", "a/../../outside.bin", "/etc/passwd", "/", "..", ".", "", "a/b", "./a",
    "..\\outside.bin", "C:\\outside.bin", "C:outside.bin", "\\\\host\\share", "\\etc\\passwd", "con",
    "a\0b", "a\nb", "~", "~/x", "%2e%2e/x", "x" * 300, "x/" * 3000, "\ud800", "\u202e", "\x1b[2J", "a:b",
)  # fmt: skip
TEXTS = ("1", "²", "½", "gpt2", "nan", "a\nb\nc\nd\ne\nf", "x" * 100_000, "{}", "%s%n{0}", "a b")
# Each as it stands in the file; 10**5000 is longer than Python reads, 10**4000 is not.
LITERALS = (
    "null true false 0 -0 -1 1 2 7 3.5 1.0 -2.5e-3 2147483647 4294967296 9223372036854775807 "
    "9223372036854775808 -9223372036854775809 18446744073709551616 1e999 -1e999 1e308 5e-324 NaN Infinity "
    '-Infinity [] {} [[]] [{}] {"":{}} [null] [0] [1,2] [[0,1]] [[1,2],[3]] [-1,1e999] "\\ud800" "\\u0000" '
    '"\\udc00\\ud800" {"a":1,"a":2} nul [1,]'
).split()
LITERALS += ["1" + "0" * 400, "-1" + "0" * 400, "1" + "0" * 4000, "1" + "0" * 5000, "0." + "0" * 5000 + "1"]
LITERALS += [json.dumps(text) for text in (*NAMES, *TEXTS)]
LITERALS += ["[" * 100_000, '{"a":' * 100_000, "[" * 100_000 + "]" * 100_000, "[" + "[]," * 10_000 + "[]]"]


class Raw(str):
    """JSON as it shall stand in the file."""


class Object(list):
    """A JSON object as (key, value) pairs, so that a key can stand twice."""


def to_text(value: Any) -> str:
    if isinstance(value, Raw):
        return value
    if isinstance(value, Object):
        return "{" + ",".join(f"{json.dumps(key)}:{to_text(one)}" for key, one in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(to_text, value)) + "]"
    return json.dumps(value)


def nested(depth: int) -> Raw:
    """As deep as the reader's own stack, give or take: parsed, and then too deep for what comes next."""
    return Raw("[" * depth + "]" * depth)


REPLACEMENTS = st.one_of(
    st.sampled_from(LITERALS).map(Raw),
    st.sampled_from(NAMES).map(json.dumps).map(Raw),
    st.integers(1, 1000).map(nested),
    st.integers().map(str).map(Raw),
    st.floats().map(json.dumps).map(Raw),
    st.text(max_size=20).map(json.dumps).map(Raw),
)


def places(value: Any) -> list[tuple[list, int]]:
    """(container, index) of every value below `value`."""
    found, waiting = [], [value]
    while waiting:
        container = waiting.pop()
        for i, one in enumerate(container):
            found.append((container, i))
            inner = one[1] if isinstance(container, Object) else one
            if isinstance(inner, list):
                waiting.append(inner)
    return found


@st.composite
def spoiled_json(draw: DrawFn, valid: bytes) -> bytes:
    """A JSON document with up to three values replaced, dropped, repeated or put in another's place."""
    document = [json.loads(valid, object_pairs_hook=Object)]
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3)))):
        container, i = draw(st.sampled_from(places(document)))
        is_object = isinstance(container, Object)
        key, value = container[i] if is_object else (None, container[i])
        change = draw(st.sampled_from(["replace"] * 5 + ["drop", "repeat", "copy", "key"]))
        if change == "drop" and container is not document:
            del container[i]
            continue
        if change == "repeat":
            other = draw(REPLACEMENTS | st.just(value))
            container.insert(i, (key, other) if is_object else other)
            continue
        if change == "key":
            key = draw(st.text(max_size=5) | st.sampled_from(NAMES))
        elif change == "copy":
            source, j = draw(st.sampled_from(places(document)))
            taken = source[j][1] if isinstance(source, Object) else source[j]
            value = Raw(to_text(taken))
        else:
            value = draw(REPLACEMENTS)
        container[i] = (key, value) if is_object else value
    text = ",".join(map(to_text, document))
    return text.encode("utf-8", "surrogatepass")


@st.composite
def spoiled_bytes(draw: DrawFn, valid: bytes, header: int = 0) -> bytes:
    """Bytes flipped, cut, inserted, repeated, zeroed or replaced by what headers must not claim; one of two
    changes falls into the first `header` bytes."""
    content = bytearray(valid)
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3)))):
        size = len(content)
        near = min(header, size) if header and draw(st.booleans()) else size
        at = draw(st.integers(0, max(0, near - 1)))
        end = min(size, at + draw(st.sampled_from((1, 2, 4, 8, 64, 1024)) | st.integers(0, 3000)))
        change = draw(st.integers(0, 7))
        if change == 0 and content:
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif change == 1:
            del content[at:]
        elif change == 2:
            content[at:at] = draw(st.binary(max_size=20))
        elif change == 3:
            content[end:end] = content[at:end] * draw(st.integers(1, 4))
        elif change == 4:
            content[at:end] = bytes(end - at)
        elif change == 5:
            del content[at:end]
        else:
            at -= at % draw(st.sampled_from((1, 4)))
            width = draw(st.sampled_from((1, 2, 4, 8)))
            number = draw(st.sampled_from(LONG_NUMBERS if width == 8 else NUMBERS)) % 2 ** (8 * width)
            content[at : at + width] = number.to_bytes(width, draw(st.sampled_from(("little", "big"))))
    return bytes(content)


def binary(valid: bytes, header: int = 0) -> SearchStrategy[bytes]:
    return st.one_of(spoiled_bytes(valid, header), spoiled_bytes(valid, header), st.binary(max_size=100))


def json_file(valid: bytes) -> SearchStrategy[bytes]:
    deep = st.sampled_from(LITERALS).map(lambda text: text.encode("utf-8", "surrogatepass"))
    return st.one_of(*[spoiled_json(valid)] * 5, spoiled_bytes(valid), st.binary(max_size=100), deep)


def json_lines(valid: bytes) -> SearchStrategy[bytes]:
    """One line spoiled as JSON, or the whole as bytes."""
    lines = valid.splitlines(keepends=True)

    @st.composite
    def spoiled(draw: DrawFn) -> bytes:
        i = draw(st.integers(0, len(lines) - 1))
        return b"".join([*lines[:i], draw(spoiled_json(lines[i])) + b"\n", *lines[i + 1 :]])

    return st.one_of(spoiled(), spoiled(), spoiled_bytes(valid), st.binary(max_size=100))


def with_json_header(
    valid: bytes, start: int, end: int, join: Callable[[bytes], bytes]
) -> SearchStrategy[bytes]:
    """A binary file whose JSON, bytes `start` to `end`, is spoiled; `join` makes the file of it."""
    return binary(valid, end) | spoiled_json(valid[start:end]).map(join)


def safetensors(valid: bytes) -> SearchStrategy[bytes]:
    (length,) = struct.unpack("<Q", valid[:8])
    body = valid[8 + length :]

    def join(header: bytes) -> bytes:
        padded = header + b" " * (-len(header) % 8)
        return struct.pack("<Q", len(padded)) + padded + body

    return with_json_header(valid, 8, 8 + length, join)


def text_file(valid: bytes, fragments: Sequence[str]) -> SearchStrategy[bytes]:
    """Bytes spoiled, or fragments put in at any place."""

    @st.composite
    def spliced(draw: DrawFn) -> bytes:
        content = valid
        for _ in range(draw(st.integers(1, 3))):
            at, cut = draw(st.integers(0, len(content))), draw(st.sampled_from((0, 0, 1, 10, 100)))
            content = content[:at] + draw(st.sampled_from(fragments)).encode() + content[at + cut :]
        return content

    return spliced() | binary(valid)
