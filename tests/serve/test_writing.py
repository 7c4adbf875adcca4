"""Whatever pieces a text comes in, together they are the text up to the first stop string."""

from hypothesis import given
from hypothesis import strategies as st

from overnight.data import tokens
from overnight.serve.writing import Writing
from overnight.slots import Drawn

GPT2 = tokens.gpt2()
BYTES = {GPT2.decode_bytes([token])[0]: token for token in range(256)}  # GPT-2's first 256 ids are bytes
TEXTS = st.text(alphabet="ab é😀", max_size=40)


@given(TEXTS, st.lists(st.text(alphabet="ab é😀", min_size=1, max_size=4), max_size=4), st.randoms())
def test_pieces_are_the_text_before_the_first_stop(text: str, stop: list[str], draw: object) -> None:
    """Tokens of single bytes too, so that characters are torn."""
    bytewise = [BYTES[byte] for byte in text.encode()]
    for ids in (GPT2.encode(text).tolist(), bytewise):
        writing, pieces, told = Writing(GPT2, tuple(stop), judged=True), [], []
        for token in ids:
            writing.add(Drawn(token, -1.0))
            if draw.random() < 0.5:  # type: ignore[attr-defined]
                piece, logprobs = writing.take()
                pieces.append(piece)
                told.append(logprobs)
        writing.end("length")
        piece, logprobs = writing.take()
        found = [at for one in stop if (at := text.find(one)) >= 0]
        wanted = text[: min(found)] if found else text
        assert "".join([*pieces, piece]) == wanted
        assert writing.finish == ("stop" if found else "length")
        offsets = [at for one in [*told, logprobs] if one for at in one["text_offset"]]
        assert offsets == sorted(offsets)
        assert all(at < len(wanted) for at in offsets) or not found


def test_what_may_become_a_stop_is_held_back() -> None:
    writing = Writing(GPT2, ("\n\n",))
    for token in [*GPT2.encode("a").tolist(), 198]:
        writing.add(Drawn(token))
    assert writing.take()[0] == "a"
    writing.add(Drawn(GPT2.encode("b").tolist()[0]))
    assert writing.take()[0] == "\nb"
    writing.add(Drawn(198))
    writing.add(Drawn(198))
    assert writing.finish == "stop"
    assert writing.take()[0] == ""
    writing.add(Drawn(198))  # too late
    assert writing.text == "a\nb"


def test_a_torn_character_is_named_by_its_bytes_and_shown_when_whole() -> None:
    writing = Writing(GPT2, (), judged=True)
    ids = GPT2.encode("😀").tolist()
    assert len(ids) > 1
    for token in ids[:-1]:
        writing.add(Drawn(token, -1.0))
    assert writing.take()[0] == ""
    writing.add(Drawn(ids[-1], -1.0))
    text, told = writing.take()
    assert text == "😀"
    assert told
    assert all(name.startswith("bytes:\\x") for name in told["tokens"])
    assert "bytes:\\xf0\\x9f" in told["tokens"][0]


def test_a_character_that_never_becomes_whole_ends_as_a_replacement() -> None:
    writing = Writing(GPT2)
    writing.add(Drawn(GPT2.encode("😀").tolist()[0]))
    writing.end("length")
    assert writing.take()[0] == "�"
