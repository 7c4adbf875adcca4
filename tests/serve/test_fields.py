"""Any JSON is a request that makes sense, or a refusal that names what does not."""

import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.serve.running import Server

from overnight.data import tokens
from overnight.serve.fields import KNOWN, Asked, Limits, parse
from overnight.serve.refusal import Refusal

TOKENIZER = tokens.train_char(["the night is long"])
JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
SENSIBLE: Any = {
    "model": st.sampled_from(["x", None]),
    "prompt": st.sampled_from(["the", ["t", "h"], [0, 1], [[1], [2]], "", None]),
    "max_tokens": st.integers(0, 4096), "temperature": st.floats(0, 2), "top_p": st.floats(0.01, 1),
    "top_k": st.integers(0, 100), "n": st.integers(1, 8),
    "stop": st.sampled_from([None, "a", ["a", "b"], []]),
    "seed": st.integers(-(2**63), 2**63 - 1), "logprobs": st.sampled_from([None, 0, 5]),
    "echo": st.booleans(), "stream": st.booleans(),
    "stream_options": st.sampled_from([None, {"include_usage": True}]),
    "suffix": st.none(), "best_of": st.none(), "user": st.text(max_size=5), "logit_bias": st.just({}),
    "presence_penalty": st.just(0), "frequency_penalty": st.just(0.0),
}  # fmt: skip


def parsed(body: Any) -> Asked:
    return parse(body, "x", TOKENIZER, 16, Limits())


@given(JSON | st.dictionaries(st.sampled_from(KNOWN), JSON, max_size=6))
def test_nonsense_is_refused_and_never_an_error_of_ours(body: Any) -> None:
    asked, refusal = None, None
    try:
        asked = parsed(body)
    except Refusal as raised:
        refusal = raised
    if asked:
        assert 1 <= asked.n * len(asked.prompts) <= 32
    else:
        assert refusal
        assert refusal.status in (400, 404)
        assert len(refusal.message) < 600


@given(st.fixed_dictionaries({}, optional=SENSIBLE))
def test_what_makes_sense_is_understood(body: dict[str, Any]) -> None:
    asked = parsed(body)
    assert all(ids for ids in asked.prompts)
    assert asked.max_tokens == (16 if body.get("max_tokens") is None else body["max_tokens"])
    assert asked.stream is bool(body.get("stream"))


def test_every_known_field_is_tried_above() -> None:
    assert set(SENSIBLE) == set(KNOWN)


def test_an_empty_prompt_begins_a_document_and_shows_as_nothing() -> None:
    asked = parsed({"prompt": ["", "the"], "echo": True})
    assert asked.prompts[0] == (TOKENIZER.eot,)
    assert asked.shown == ("", "the")


def test_a_prompt_that_is_longer_than_the_model_sees_is_counted_whole_and_kept_in_part() -> None:
    asked = parsed({"prompt": [[0, 1] * 1000, "the"]})
    assert asked.prompts == ((0, 1) * 8, tuple(TOKENIZER.encode("the").tolist()))
    assert asked.prompt_tokens == 2003


def test_echoed_characters_are_counted_once_per_text() -> None:
    body = {"prompt": ["the night " * 2000] * 2, "n": 16}
    assert parsed(body).shown == ("", "")
    assert parsed(body | {"echo": True}).shown[0] == "the night " * 2000
    with pytest.raises(Refusal, match=r"the prompts times n have over 1,000,000 characters"):
        parsed({"prompt": ["the night " * 3200] * 2, "n": 16, "echo": True})


def test_digits_are_counted_before_they_are_read() -> None:
    """Python's own limit can be switched off, and reading takes quadratic time."""
    code = "from overnight.serve.fields import read; read(b'9' * 10_000_000, 'x', None, 16, None)"
    environment = os.environ | {"PYTHONINTMAXSTRDIGITS": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=120,
    )
    assert "contains a number of 10,000,000 digits: give at most 100." in done.stderr


def test_a_number_that_is_whole_may_be_written_with_a_point() -> None:
    assert parsed({"max_tokens": 8.0}).max_tokens == 8
    with pytest.raises(Refusal, match=r"max_tokens is 8\.5"):
        parsed({"max_tokens": 8.5})


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"prompt": "ü"}, "prompt", "'ü'"),
        ({"prompt": []}, "prompt", "prompt is a string, a list of strings, or token ids."),
        ({"prompt": {"a": 1}}, "prompt", "prompt is a string"),
        ({"prompt": [1, 99]}, "prompt", "token ids are whole numbers below 20."),
        ({"max_tokens": -1}, "max_tokens", "max_tokens is -1: give a whole number from 0 to 4,096."),
        ({"max_tokens": 4097}, "max_tokens", "from 0 to 4,096"),
        ({"max_tokens": "many"}, "max_tokens", "max_tokens is 'many'"),
        ({"temperature": -0.1}, "temperature", "temperature is -0.1: give a number from 0 to 100."),
        ({"top_p": 0}, "top_p", "top_p is 0: give more than 0, at most 1."),
        ({"n": 33}, "n", "n is 33: give a whole number from 1 to 32."),
        ({"n": 20, "prompt": ["a", "t"]}, "n", "2 prompts x n 20: at most 32 texts a request."),
        ({"stop": ["a"] * 5}, "stop", "up to four"),
        ({"stop": ""}, "stop", "none of them empty"),
        ({"logprobs": 6}, "logprobs", "from 0 to 5"),
        ({"stream": "yes"}, "stream", "give true or false"),
        ({"best_of": 4}, "best_of", "best_of is not supported: leave it out."),
        ({"presence_penalty": 1}, "presence_penalty", "not supported"),
        ({"temprature": 1}, "temprature", "Unknown field 'temprature'. Did you mean temperature?"),
        ({"prompt": "the night is long", "echo": True, "logprobs": 1}, "prompt", "The model sees 16 tokens"),
    ],
)
def test_wrong_fields_are_named(server: Server, fields: dict[str, Any], param: str, said: str) -> None:
    reply = server.complete(**{"model": "x", "prompt": "the"} | fields)
    error = reply.json["error"]
    assert (reply.status, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert said in error["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        b"[1]",
        b"\xff",
        b"[" * 100_000,
        b'{"model": "x", "n": NaN}',
        b'{"a":' * 50_000,
        b'{"n": ' + b"9" * 250_000 + b"}",
        b"9" * 101,
        b'{"seed": -' + b"1" * 200 + b"}",
        b'{"temperature": 1' + b"0" * 250_000 + b".5}",
        b'{"temperature": 1e99999999}',
        b'{"prompt": ["a"' + b',"a"' * 50_000 + b"]}",
        b'{"' + b"x" * 250_000 + b'": 1}',
    ],
)
def test_a_body_that_is_no_request_is_refused(server: Server, body: bytes) -> None:
    reply = server.ask("POST", "/v1/completions", body, Content_Type="application/json")
    assert reply.status == 400
    assert reply.json["error"]["type"] == "invalid_request_error"
