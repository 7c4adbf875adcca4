"""Records: valid JSON always, whole lines only, cut back to what a checkpoint vouches for."""

import hashlib
import json
import math
import os
import re
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight.errors import UserError
from overnight.record_lines import parse
from overnight.records import FILE, Records, copy_aside, problem, read, rewind, sound
from overnight.report.history import History

EVENT = b'{"kind": "event", "step": 1, "tokens": 64, "name": "checkpoint", "detail": {}}\n'
TRAIN = b'{"kind": "train", "step": 1, "tokens": 64, "loss": 1.0}\n'


def strict(line: bytes) -> Any:
    """JSON as the standard has it: no NaN, no infinity."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(line, parse_constant=refuse)


def written(run: Path) -> list[dict]:
    lines = (run / FILE).read_bytes().split(b"\n")
    assert lines.pop() == b""
    return [strict(line) for line in lines]


def test_every_kind_has_the_designs_fields(tmp_path: Path) -> None:
    records = Records(tmp_path, pytest.fail)
    records.train(1, 64, 2.5, 1e-3, 0.5, 12.3456, 5184.26, None)
    records.val(1, 64, 2.4, 3.5, 100)
    records.sample(1, 64, "a", "b\n\u2028ä")
    records.event(1, 64, "done", {"loss": 2.4})
    records.close()
    common = {"step": 1, "tokens": 64}
    train, val, sample, event = found = written(tmp_path)
    for record in found:
        assert re.fullmatch("[0-9a-f]{8}", record.pop("crc"))
    assert list(read(tmp_path)) == found
    for record in found:
        assert record.pop("time").endswith("Z")
    assert event.pop("elapsed") >= 0
    rate = {"step_ms": 12.346, "tokens_per_second": 5184.3, "mfu": None}
    assert train == common | rate | {"kind": "train", "loss": 2.5, "lr": 1e-3, "grad_norm": 0.5}
    assert val == common | {"kind": "val", "loss": 2.4, "bits_per_byte": 3.5, "val_tokens": 100}
    assert sample == common | {"kind": "sample", "prompt": "a", "text": "b\n\u2028ä"}
    assert event == common | {"kind": "event", "name": "done", "detail": {"loss": 2.4}}


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null(tmp_path: Path, number: float) -> None:
    records = Records(tmp_path, pytest.fail)
    records.train(1, 64, number, number, number, number, number, number)
    records.val(1, 64, number, number, 1)
    records.event(1, 64, "nonfinite", {"a": [number, 1.0, {"b": (number,)}]})
    records.close()
    train, val, event = written(tmp_path)
    for name in ("loss", "lr", "grad_norm", "step_ms", "tokens_per_second", "mfu"):
        assert train[name] is None
    assert val["loss"] is val["bits_per_byte"] is None
    assert event["detail"] == {"a": [None, 1.0, {"b": [None]}]}


@given(st.lists(st.text(), max_size=5))
def test_any_text_is_one_line(texts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        records = Records(Path(folder), pytest.fail)
        for text in texts:
            records.sample(1, 64, text, text)
        records.close()
        assert [record["text"] for record in written(Path(folder))] == texts


def test_the_checksum_of_a_line_is_that_of_the_line_without_it(tmp_path: Path) -> None:
    records = Records(tmp_path, pytest.fail)
    records.sample(1, 64, "ä", ', "crc": "00000000"}')
    records.close()
    line = (tmp_path / FILE).read_bytes()
    body, crc = re.fullmatch(rb'(.*), "crc": "(.{8})"}\n', line).groups()  # type: ignore[union-attr]
    assert int(crc, 16) == zlib.crc32(body + b"}")


def test_every_flipped_bit_in_a_line_is_noticed_or_changes_no_field(tmp_path: Path) -> None:
    records = Records(tmp_path, pytest.fail)
    records.event(4, 64, "done", {"loss": 2.4})
    records.close()
    line = (tmp_path / FILE).read_bytes()
    original = parse(line)
    assert original is not None
    for bit in range(8 * len(line) - 8):
        flipped = bytearray(line)
        flipped[bit // 8] ^= 1 << bit % 8
        found = parse(bytes(flipped))
        # The name of the checksum may change, which then is a field that nobody knows.
        assert found is None or found | original == found
    (tmp_path / FILE).write_bytes(TRAIN + line.replace(b"2.4", b"9.4") + line)
    assert list(sound(tmp_path)) == [json.loads(TRAIN), original]
    assert History(tmp_path).update().damaged == 1
    rewind(tmp_path, len(TRAIN))
    assert (tmp_path / FILE).read_bytes() == TRAIN + line


def test_appending_goes_on_and_sizes_count_all_that_is_written(tmp_path: Path) -> None:
    for count in (1, 2):
        records = Records(tmp_path, pytest.fail)
        records.event(0, 0, "start", {})
        content = (tmp_path / FILE).read_bytes()
        assert records.mark() == (len(content), hashlib.sha256(content).hexdigest())
        records.close()
        assert len(written(tmp_path)) == count


def test_a_record_after_a_cut_by_another_program_has_its_own_line(tmp_path: Path) -> None:
    path, records = tmp_path / FILE, Records(tmp_path, pytest.fail)
    for step in (1, 2):
        records.event(step, 64, "checkpoint", {})
    was = path.stat().st_size
    os.truncate(path, was - 30)
    for step in (3, 4, 5):  # it is larger again than before the cut
        records.event(step, 64, "checkpoint", {})
    content = path.read_bytes()
    assert records.mark() == (len(content), hashlib.sha256(content).hexdigest())
    assert [record["step"] for record in sound(tmp_path)] == [1, 3, 4, 5]
    lost = f"was cut from {was:,} to {was - 30:,} bytes by another program: what was cut off is lost"
    assert (records.mend(), records.mend()) == (lost, "")
    os.truncate(path, 0)
    assert records.mend() == f"was cut from {len(content):,} to 0" + lost[lost.index(" bytes") :]
    os.truncate(path, 0)
    assert records.mend() == ""
    records.close()


def test_a_torn_last_line_is_not_read(tmp_path: Path) -> None:
    assert list(read(tmp_path)) == []
    (tmp_path / FILE).write_bytes(EVENT + TRAIN + TRAIN[:-1])
    assert [record["kind"] for record in read(tmp_path)] == ["event", "train"]


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(TRAIN + b"{\n" + TRAIN)
    with pytest.raises(UserError, match=r"records\.jsonl, line 2 is damaged"):
        list(read(tmp_path))


def test_rewinding_by_hand(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(TRAIN + EVENT + TRAIN + EVENT + TRAIN[:9])
    rewind(tmp_path, len(TRAIN))
    assert (tmp_path / FILE).read_bytes() == TRAIN + EVENT + EVENT
    rewind(tmp_path, 0)
    assert (tmp_path / FILE).read_bytes() == EVENT + EVENT
    assert list(tmp_path.iterdir()) == [tmp_path / FILE]


LINES = st.lists(
    st.sampled_from([EVENT, TRAIN, b'{"kind": "val"}\n', b"{torn\n", b"\0\0\n", b"[1]\n", b"7\n"])
)


@given(st.lists(st.sampled_from([EVENT, TRAIN])), LINES, st.sampled_from([b"", EVENT[:-1], TRAIN[:5], b"\0"]))
def test_rewinding_keeps_what_is_vouched_for_and_later_events(
    before: list[bytes], after: list[bytes], torn: bytes
) -> None:
    size = len(b"".join(before))
    expected = b"".join(before + [line for line in after if line == EVENT])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILE
        path.write_bytes(b"".join(before + after) + torn)
        for _ in range(2):  # a kill right behind it, and it is done once more
            rewind(Path(folder), size)
            assert path.read_bytes() == expected


@pytest.mark.parametrize("torn", [b"", TRAIN[:9]])
def test_records_shorter_than_vouched_for_are_whole_lines_again(tmp_path: Path, torn: bytes) -> None:
    """Cut by hand, or by a disk that lied: what is written next must not be glued to half a line."""
    (tmp_path / FILE).write_bytes(TRAIN + torn)
    rewind(tmp_path, 1000)
    assert (tmp_path / FILE).read_bytes() == TRAIN


@pytest.mark.parametrize(
    "use",
    [
        lambda run: list(sound(run)), lambda run: problem(run, 10, ""), copy_aside,
        lambda run: rewind(run, 10), lambda run: History(run).update(),
    ],
)  # fmt: skip
def test_a_file_larger_than_the_records_of_any_run_is_refused(
    use: Callable[[Path], object], tmp_path: Path
) -> None:
    (tmp_path / FILE).write_bytes(TRAIN)
    os.truncate(tmp_path / FILE, 1 << 42)  # sparse: it takes no room
    with pytest.raises((OSError, UserError), match="it is larger than 2,147,483,648 bytes"):
        use(tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / FILE]


def test_rewinding_nothing_makes_nothing(tmp_path: Path) -> None:
    rewind(tmp_path, 100)
    assert list(tmp_path.iterdir()) == []
