"""Every reader, given spoiled files: a right answer or a refusal in three lines, nothing else.

The long form is benchmarks/fuzz.py. What it found is at the end, case by case.
"""

import gzip
import json
import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject
from tests.fuzzing import Bench, Escape, Reader, readers
from tests.mutations import spoiled_json

from overnight.data import readers as text_readers
from overnight.errors import UserError
from overnight.files import deeper_than, to_json

EXAMPLES = 40
ALWAYS = (
    b"",
    b"\0",
    b"\xff" * 2000,
    b"{}",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"1" * 5000,
    b"\n" * 3,
    b"PK\x03\x04",
)
FEWER = {"tokenizer-gpt2": 10, "llmc-fp32": 15, "llmc-bf16": 15}  # each reads GPT-2's merges


@pytest.fixture
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    return Bench(readers()[request.param], tmp_path / "base")


@pytest.mark.parametrize("bench", readers(), indirect=True)
def test_any_bytes_give_a_right_answer_or_a_clear_error(bench: Bench, request: pytest.FixtureRequest) -> None:
    assert bench.accepts(bench.valid)
    for content in ALWAYS:
        bench.accepts(content)
    count = FEWER.get(request.node.callspec.params["bench"], EXAMPLES)

    @settings(
        max_examples=count, phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck)
    )
    @given(bench.reader.spoil(bench.valid))
    def spoiled(content: bytes) -> None:
        bench.accepts(content)

    spoiled()


# --- The fuzzing itself finds what it should


@pytest.mark.parametrize(
    ("read", "says"),
    [
        (lambda path: json.loads(path.read_bytes()), "JSONDecodeError"),
        (lambda path: {}["x"], "KeyError"),
        (lambda path: open("/etc/passwd").close(), "opened .*passwd"),
        (lambda path: (path.parent.parent / "outside" / path.name).read_bytes(), "opened .*outside"),
        (
            lambda path: open(path.parent / "a" / ".." / ".." / "outside.json").close(),
            "opened .*outside.json",
        ),
    ],
)
def test_what_a_reader_must_not_do_is_an_escape(
    read: Callable[[Path], object], says: str, tmp_path: Path
) -> None:
    def make(folder: Path) -> Path:
        (folder / "a").mkdir()
        (folder / "a.json").write_text("{}")
        return folder / "a.json"

    bench = Bench(Reader(make, read, st.just), tmp_path / "base")
    with pytest.raises(Escape, match=says):
        bench.accepts(b"{")


def test_a_long_refusal_is_an_escape(tmp_path: Path) -> None:
    def refuse(path: Path) -> None:
        error = UserError("x")
        error.args = ("a\nb\nc\nd",)
        raise error

    def make(folder: Path) -> Path:
        (folder / "a.x").write_text("")
        return folder / "a.x"

    with pytest.raises(Escape, match="4 lines"):
        Bench(Reader(make, refuse, st.just), tmp_path / "base").accepts(b"")


@given(st.data())
def test_spoiled_json_differs_in_a_few_places(data: DataObject) -> None:
    content = data.draw(spoiled_json(b'{"a": [1, {"b": null}], "c": "d"}'))
    assert isinstance(content, bytes)


# --- What it found


def edited(valid: bytes, **fields: object) -> bytes:
    return json.dumps(json.loads(valid) | fields).encode()


def doubling_merges(valid: bytes) -> bytes:
    """The longest token would have 2**90 bytes."""
    merges = [[0, 0], *([255 + i, 255 + i] for i in range(1, 90))]
    return json.dumps({"kind": "bpe", "vocab_size": 347, "eot": 346, "merges": merges}).encode()


def endless(valid: bytes) -> bytes:
    """More layers than a float can count, whose width would follow from them."""
    return valid.replace(b'"n_layer": 2', b'"n_layer": ' + b"8" * 320).replace(b'"n_embd": 8', b'"n_embd": 0')


def layers(valid: bytes) -> bytes:
    """A model of llm.c with 2,000 layers of width 1, as long as its header says."""
    numbers = 2 + 2000 * 25 + 2
    return struct.pack("<8i", 20240326, 3, 1, 1, 2000, 1, 1, 1) + bytes(4 * (256 - 8) + 4 * numbers)


def three_dimensions(valid: bytes) -> bytes:
    (length,) = struct.unpack("<Q", valid[:8])
    header = valid[8 : 8 + length].replace(b'"shape":[8,24]', b'"shape":[8,8,3]')
    assert header != valid[8 : 8 + length]
    return struct.pack("<Q", len(header)) + header + valid[8 + length :]


def shard_of(valid: bytes, **fields: object) -> bytes:
    """A manifest whose first shard says something else."""
    described = json.loads(valid)
    described["shards"][0] |= fields
    return json.dumps(described).encode()


# What it is, its reader, and how the file is spoiled.
FOUND: list[tuple[str, str, Callable[[bytes], bytes]]] = [
    ("merges that double", "tokenizer-bpe", doubling_merges),
    ("merges of text", "tokenizer-bpe", lambda valid: edited(valid, merges=["x" * 1000, *[""] * 100_000])),
    ("another version", "manifest", lambda valid: edited(valid, version=2)),
    ("a count with a point", "manifest", lambda valid: edited(valid, documents=1.0)),
    ("a count of text", "manifest", lambda valid: edited(valid, bytes="1")),
    ("another dtype", "manifest", lambda valid: edited(valid, dtype="uint32")),
    ("the folder above", "manifest", lambda valid: shard_of(valid, file="..")),
    ("a shard twice", "manifest", lambda valid: shard_of(valid, file="train_000002.bin")),
    (
        "nested deep",
        "manifest",
        lambda valid: valid.replace(b"{", b'{"a": ' + b"[" * 900 + b"]" * 900 + b",", 1),
    ),
    ("no manifest", "staged-manifest", lambda valid: b'{"request": {}}'),
    ("no list of shards", "staged-manifest", lambda valid: edited(valid, shards=5)),
    ("no rule", "progress", lambda valid: edited(valid, split="none")),
    ("no place", "progress", lambda valid: edited(valid, place={"file": "x"})),
    ("less than nothing", "progress", lambda valid: re.sub(rb'"open": [0-9]+', b'"open": -512', valid)),
    ("a key too many", "progress", lambda valid: valid.replace(b'"sha256":', b'"x": NaN, "sha256":', 1)),
    ("no task", "cluster-task", lambda valid: b"{}"),
    ("a number of text", "cluster-task", lambda valid: valid.replace(b'"documents": 3', b'"documents": "3"')),
    ("an id less", "cluster-ids", lambda valid: valid[:-2]),
    ("an archive", "cluster-index", lambda valid: b"PK\x05\x06" + bytes(18)),
    ("an archive", "npy", lambda valid: b"PK\x05\x06" + bytes(18)),
    ("too many layers", "config", lambda valid: valid.replace(b'"n_layer": 2', b'"n_layer": 100000000')),
    ("too wide", "config", lambda valid: valid.replace(b'"block_size": 8', b'"block_size": ' + b"8" * 300)),
    ("three dimensions", "hf-weights", three_dimensions),
    ("too many layers", "llmc-fp32", layers),
    ("no width", "config-modern", lambda valid: valid.replace(b'"n_embd": 8', b'"n_embd": 0')),
    ("endless layers of no width", "config-modern", endless),
    ("no heads", "config-modern", lambda valid: valid.replace(b'"n_head": 2', b'"n_head": 7')),
    (
        "a number too long",
        "stackexchange",
        lambda valid: valid.replace(b'Id="7"', b'Id="99999999999999999999"'),
    ),
    (
        "a post twice",
        "stackexchange",
        lambda valid: valid.replace(b'Id="9"', b'Id="8"').replace(b'"999"', b'"7"'),
    ),
    ("no encoding", "stackexchange", lambda valid: valid.replace(b"utf-8", b"uvf-8")),
]


@pytest.mark.parametrize(
    ("bench", "spoil"),
    [case[1:] for case in FOUND],
    indirect=["bench"],
    ids=[" in ".join(case[:2]) for case in FOUND],
)
def test_what_was_found_is_refused(bench: Bench, spoil: Callable[[bytes], bytes]) -> None:
    content = spoil(bench.valid)
    assert content != bench.valid
    assert not bench.accepts(content)


@pytest.mark.parametrize("html", ["&lt;![x", '&lt;ol start=\\"½\\"&gt;&lt;li&gt;x', "&lt;div&gt;" * 3000])
@pytest.mark.parametrize("bench", ["stackexchange"], indirect=True)
def test_odd_html_is_still_text(bench: Bench, html: str) -> None:
    before = b"&lt;p&gt;Why &lt;b&gt;so&lt;/b&gt;?&lt;/p&gt;"
    assert bench.accepts(bench.valid.replace(before, html.replace('\\"', "&quot;").encode(), 1))


@pytest.mark.parametrize("bench", ["tokenizer-char"], indirect=True)
def test_a_tokenizer_of_no_characters_knows_none(bench: Bench) -> None:
    assert bench.accepts(b'{"kind": "char", "vocab_size": 1, "eot": 0, "characters": ""}')


@pytest.mark.parametrize("bench", ["tokens"], indirect=True)
def test_an_id_that_the_tokenizer_does_not_have_is_named(bench: Bench) -> None:
    bench.path.write_bytes(bench.valid[:1030] + b"\xff\xff" + bench.valid[1032:])
    with pytest.raises(UserError, match=r"token 3 of the split is 65535, but the tokenizer has \d+ ids"):
        bench.reader.read(bench.path)


def test_a_bomb_without_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_readers, "ANY_TEXT", 1 << 20)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"\n" * (3 << 20)))
    with pytest.raises(UserError, match="times its own size"):
        list(text_readers.read_file(tmp_path / "a.jsonl.gz"))


@pytest.mark.parametrize(("depth", "deep"), [(0, False), (50, False), (51, True), (5000, True)])
def test_how_deep_json_is_nested(depth: int, deep: bool) -> None:
    value: object = 1
    for i in range(depth):
        value = [value] if i % 2 else {"a": value, "b": []}
    assert deeper_than(50, value) is deep


def test_a_name_that_is_no_unicode_is_written_as_json() -> None:
    """As Linux allows for files; '\\udcff' is how Python holds the byte 0xff of one."""
    for value in ({"a": "é\udcff"}, {"a": "é"}):
        assert json.loads(to_json(value).encode("utf-8")) == value
