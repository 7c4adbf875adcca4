"""How answers are made of the tokens that the model's thread tells, without a model."""

import asyncio
import json
import threading
from typing import Any

import pytest
from starlette.requests import Request

from overnight.data import tokens
from overnight.serve.completions import Answer, Completions
from overnight.serve.fields import Limits, parse
from overnight.serve.jobs import Job
from overnight.serve.writing import Writing
from overnight.slots import Drawn

TOKENIZER = tokens.train_char(["the night"])


class Batcher:
    """Tells the same token, as often as it is asked for."""

    tokenizer = TOKENIZER

    def __init__(self, drawn: Drawn):
        self.drawn = drawn

    def submit(self, job: Job) -> None:
        for which in range(len(job.texts)):
            for _ in range(job.length):
                job.tell(which, self.drawn)
            job.tell(which, "length")


async def connected() -> Any:
    """A client that stays."""
    await asyncio.Event().wait()


async def asked(drawn: Drawn, stream: bool) -> bytes:
    """The answer of two texts of three tokens each, with probabilities."""
    batcher: Any = Batcher(drawn)
    limits = Limits()
    body = {"prompt": "the", "n": 2, "max_tokens": 3, "logprobs": 1}
    completions = Completions(batcher, "x", limits, asyncio.Event())
    answer = Answer(completions, parse(body | {"stream": stream}, "x", TOKENIZER, 16, limits))
    if stream:
        return b"".join([event async for event in answer.events()])
    return await answer.whole(Request({"type": "http"}, connected))


@pytest.mark.parametrize("stream", [False, True])
def test_the_server_answers_others_while_an_answer_is_encoded(
    stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encoding the probabilities of 32 texts of 4,096 tokens takes seconds."""
    threads: list[int] = []
    take = Writing.take

    def noted(writing: Writing) -> Any:
        threads.append(threading.get_ident())
        return take(writing)

    monkeypatch.setattr(Writing, "take", noted)
    got = asyncio.run(asked(Drawn(2, -0.5, ((2, -0.5),)), stream))
    assert len(threads) >= 2
    assert threading.get_ident() not in threads
    parts = got.removeprefix(b"data: ").split(b"\n\n")
    choices = json.loads(parts[0])["choices"]
    assert [choice["index"] for choice in choices] == [0, 1]
    assert choices[0]["logprobs"]["token_logprobs"] == [-0.5] * 3


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_not_json_is_never_sent(stream: bool) -> None:
    """Parsers of JSON refuse NaN; the model's thread reports an error in place of it."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        asyncio.run(asked(Drawn(2, float("nan")), stream))
