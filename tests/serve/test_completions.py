"""OpenAI's completions, asked with OpenAI's own client, of a real server."""

import json
import threading
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from tests.serve.running import Server, events

from overnight import resolve
from overnight.decode import Sampling
from overnight.generate import texts
from overnight.serve.completions import event


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def loaded(trained: Path) -> resolve.Loaded:
    return resolve.load(str(trained), torch.device("cpu"))


def alone(loaded: resolve.Loaded, prompt: str, length: int, sampling: Sampling, seed: int) -> str:
    assert loaded.tokenizer
    return texts(loaded.model, loaded.tokenizer, [prompt], length, sampling, seed)[0]


def test_the_model_is_named_after_its_run(client: openai.OpenAI) -> None:
    [model] = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("x", "model", "overnight")


@pytest.mark.parametrize(
    "sampling", [Sampling(0), Sampling(1.0), Sampling(0.7, top_k=3), Sampling(1.0, top_p=0.5)]
)
def test_a_completion_is_what_sample_writes_with_the_same_seed(
    client: openai.OpenAI, loaded: resolve.Loaded, sampling: Sampling
) -> None:
    answer = client.completions.create(
        model="x", prompt="the night", max_tokens=40, seed=7, temperature=sampling.temperature,
        top_p=sampling.top_p, extra_body={"top_k": sampling.top_k},
    )  # fmt: skip
    [choice] = answer.choices
    written = len(choice.text)
    assert choice.text == alone(loaded, "the night", 40, sampling, 7)
    assert choice.finish_reason == ("length" if written == 40 else "stop")
    assert (choice.index, choice.logprobs) == (0, None)
    assert answer.usage
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (9, written)
    assert answer.usage.total_tokens == 9 + written


def test_several_prompts_and_samples_are_numbered_as_openai_does(
    client: openai.OpenAI, loaded: resolve.Loaded
) -> None:
    prompts = ["the night", "morning"]
    answer = client.completions.create(
        model="x", prompt=prompts, n=3, max_tokens=10, temperature=0, echo=True
    )
    assert [choice.index for choice in answer.choices] == list(range(6))
    wanted = [prompt + alone(loaded, prompt, 10, Sampling(0), 0) for prompt in prompts for _ in range(3)]
    assert [choice.text for choice in answer.choices] == wanted
    drawn = client.completions.create(model="x", prompt="the", n=3, max_tokens=20, seed=1)
    assert len({choice.text for choice in drawn.choices}) == 3


def test_a_stream_says_the_same_piece_by_piece(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "x",
        "prompt": "the night",
        "max_tokens": 60,
        "seed": 3,
        "n": 2,
        "logprobs": 2,
    }
    whole = client.completions.create(**asked)
    chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    for choice in whole.choices:
        mine = [one for chunk in chunks for one in chunk.choices if one.index == choice.index]
        assert "".join(one.text for one in mine) == choice.text
        assert [one.finish_reason for one in mine][-1] == choice.finish_reason
        assert choice.logprobs
        offsets = [at for one in mine if one.logprobs for at in one.logprobs.text_offset or []]
        assert offsets == choice.logprobs.text_offset
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


def test_no_text_ends_the_line_of_an_event() -> None:
    """Some clients end a line where Unicode does, as `str.splitlines`."""
    said = event({"text": "a\u2028b\x85c\nd"})
    assert len(said.decode().splitlines()) == 2  # the event and the empty line behind it
    assert json.loads(said.removeprefix(b"data: ")) == {"text": "a\u2028b\x85c\nd"}


def test_a_stream_ends_with_done(server: Server) -> None:
    told = events(server.stream(model="x", prompt="a", max_tokens=3))
    assert told[-1] == "[DONE]"
    assert all(one["object"] == "text_completion" for one in told[:-1])


def test_stop_strings_end_a_text_before_them(client: openai.OpenAI, loaded: resolve.Loaded) -> None:
    seed, free = next(
        (seed, text) for seed in range(99) if len(text := alone(loaded, "the", 60, Sampling(), seed)) > 30
    )
    stop = free[20:23]
    for stream in (False, True):
        answer: Any = client.completions.create(
            model="x", prompt="the", max_tokens=60, seed=seed, stop=[stop, "never there"], stream=stream
        )
        chunks = list(answer) if stream else [answer]
        assert "".join(one.choices[0].text for one in chunks) == free[: free.index(stop)]
        assert chunks[-1].choices[0].finish_reason == "stop"


def test_probabilities_are_those_of_a_forward_pass(client: openai.OpenAI, loaded: resolve.Loaded) -> None:
    answer = client.completions.create(
        model="x", prompt="the night", max_tokens=4, temperature=0, logprobs=3, echo=True
    )
    told = answer.choices[0].logprobs
    assert told
    assert told.tokens
    assert told.token_logprobs
    assert told.top_logprobs
    assert "".join(told.tokens) == answer.choices[0].text
    assert told.text_offset == list(range(13))
    assert told.token_logprobs[0] is None
    assert loaded.tokenizer
    ids = torch.tensor([loaded.tokenizer.encode(answer.choices[0].text).tolist()])
    with torch.no_grad():
        wanted = loaded.model.logits(loaded.model.hidden(ids))[0, :, : loaded.tokenizer.vocab_size]
    wanted = wanted.log_softmax(-1)
    for i in range(1, 13):
        assert told.token_logprobs[i] == pytest.approx(wanted[i - 1, ids[0, i]].item(), abs=1e-4)
        best = wanted[i - 1].topk(3)
        assert list(told.top_logprobs[i].values()) == pytest.approx(best.values.tolist(), abs=1e-4)


def test_a_prompt_can_be_judged_without_writing(client: openai.OpenAI) -> None:
    """What evaluation harnesses ask: echo, logprobs and no tokens."""
    answer = client.completions.create(model="x", prompt="the night", max_tokens=0, logprobs=1, echo=True)
    [choice] = answer.choices
    assert choice.text == "the night"
    assert choice.logprobs
    assert len(choice.logprobs.token_logprobs or []) == 9
    assert answer.usage
    assert answer.usage.completion_tokens == 0


def test_prompts_may_be_token_ids(client: openai.OpenAI, loaded: resolve.Loaded) -> None:
    assert loaded.tokenizer
    ids = loaded.tokenizer.encode("the night").tolist()
    texts = [
        client.completions.create(model="x", prompt=prompt, max_tokens=8, temperature=0).choices[0].text
        for prompt in ("the night", ids, [ids])
    ]
    assert texts[0] == texts[1] == texts[2]


def test_a_text_goes_on_beyond_the_context(client: openai.OpenAI, loaded: resolve.Loaded) -> None:
    long = "the night is long and the model learns one word "
    answer = client.completions.create(model="x", prompt=long, max_tokens=100, temperature=0)
    assert answer.choices[0].text == alone(loaded, long, 100, Sampling(0), 0)


def test_whoever_else_asks_meanwhile_each_gets_its_own_text(
    client: openai.OpenAI, loaded: resolve.Loaded
) -> None:
    """24 at once on 8 rows, of different lengths."""
    got: dict[int, str] = {}

    def ask(seed: int) -> None:
        answer = client.completions.create(
            model="x", prompt="the night is long"[: 1 + seed % 17], max_tokens=5 + 7 * (seed % 9), seed=seed
        )
        got[seed] = answer.choices[0].text

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(24):
        prompt = "the night is long"[: 1 + seed % 17]
        assert got[seed] == alone(loaded, prompt, 5 + 7 * (seed % 9), Sampling(), seed)


def test_openais_client_raises_its_own_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="it is called 'x'"):
        client.completions.create(model="gpt-4", prompt="the")
    with pytest.raises(openai.BadRequestError, match="best_of is not supported"):
        client.completions.create(model="x", prompt="the", best_of=2)
