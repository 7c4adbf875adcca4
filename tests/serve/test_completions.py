"""OpenAI's completions, asked with OpenAI's own client, of a real server."""

import contextlib
import json
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from tests.serve.running import Server, events, serving, until

from overnight import checkpoint, resolve
from overnight.decode import Sampling
from overnight.generate import texts

ENDLESS = 1_000_000  # tokens: minutes of work


@pytest.fixture(scope="module")
def server(trained: Path) -> Iterator[Server]:
    with serving(trained, "--rows", "8") as one:
        yield one


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


def test_openais_client_raises_its_own_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="it is called 'x'"):
        client.completions.create(model="gpt-4", prompt="the")
    with pytest.raises(openai.BadRequestError, match="best_of is not supported"):
        client.completions.create(model="x", prompt="the", best_of=2)


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


def test_a_client_that_goes_away_ends_its_work(trained: Path) -> None:
    """On one row, the next text can only begin when the one before has ended."""
    with serving(trained, "--rows", "1", "--max-tokens", str(ENDLESS)) as server:
        for leave in ("stream", "whole"):
            if leave == "stream":
                stream = server.stream(model="x", prompt="the", max_tokens=ENDLESS, temperature=0)
                assert stream.read(10)
                stream.close()
            else:
                connection = server.connect()
                body = json.dumps(
                    {"model": "x", "prompt": "the", "max_tokens": ENDLESS, "temperature": 0}
                ).encode()
                connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
                connection.close()
            assert server.complete(model="x", prompt="the", max_tokens=5).status == 200


def test_a_request_has_an_end(trained: Path) -> None:
    with serving(trained, "--rows", "1", "--max-tokens", str(ENDLESS), "--timeout", "1") as server:
        reply = server.complete(model="x", prompt="the", max_tokens=ENDLESS, temperature=0)
        assert (reply.status, reply.json["error"]["code"]) == (400, "timeout")
        told = events(server.stream(model="x", prompt="the", max_tokens=ENDLESS, temperature=0))
        assert told[-1]["error"]["code"] == "timeout"
        assert server.complete(model="x", prompt="the", max_tokens=5).status == 200


def test_more_than_can_wait_are_sent_away(trained: Path) -> None:
    with serving(trained, "--rows", "1", "--max-tokens", str(ENDLESS)) as server:
        streams = [
            server.stream(model="x", prompt="the", max_tokens=ENDLESS, temperature=0, n=32) for _ in range(8)
        ]
        reply = server.complete(model="x", prompt="the", max_tokens=5)
        assert (reply.status, reply.json["error"]["type"]) == (429, "rate_limit_error")
        assert reply.headers["retry-after"] == "1"
        for stream in streams:
            stream.close()
        until("room", lambda: server.complete(model="x", prompt="the", max_tokens=5).status == 200)


def test_many_that_come_at_once_are_counted_before_they_begin(trained: Path) -> None:
    """All of them wait for the server, which was stopped; it does not let in more than it said."""
    with serving(trained, "--rows", "1", "--max-tokens", str(ENDLESS)) as server:
        server.process.send_signal(signal.SIGSTOP)
        connections = [server.connect() for _ in range(12)]
        body = json.dumps({"model": "x", "prompt": "the", "max_tokens": ENDLESS, "temperature": 0, "n": 32})
        for connection in connections:
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            connection.sock.settimeout(0.5)
        server.process.send_signal(signal.SIGCONT)
        statuses = []
        for connection in connections:
            with contextlib.suppress(TimeoutError):
                statuses.append(connection.getresponse().status)
        assert statuses == [429] * 4
        for connection in connections:
            connection.close()


def test_what_breaks_in_the_models_thread_is_in_the_log_and_not_told(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the next request is answered."""
    (run / "sitecustomize.py").write_text(
        "from overnight.slots import Slots\n"
        "joined, calls = Slots.join, []\n"
        "def join(slots, texts):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 2:\n"  # the first is the server's own try
        "        raise RuntimeError('a secret')\n"
        "    return joined(slots, texts)\n"
        "Slots.join = join\n"
    )
    with serving(run, PYTHONPATH=str(run)) as server:
        reply = server.complete(model="x", prompt="the", max_tokens=5)
        assert reply.status == 500
        assert reply.json["error"]["message"] == "the server made a mistake; its log says which"
        assert server.complete(model="x", prompt="the", max_tokens=5).status == 200
        server.process.terminate()
        assert "RuntimeError: a secret" in server.process.communicate()[1]


def test_weights_that_have_diverged_are_an_error_and_not_an_end(run: Path) -> None:
    from safetensors.torch import load_file, save_file

    from overnight.files import sha256_file

    folder = run / "checkpoints" / "step_00000004"
    weights = load_file(folder / "model.safetensors")
    weights["ln_f.weight"].fill_(float("nan"))
    save_file(weights, folder / "model.safetensors")
    state = json.loads((folder / "state.json").read_text())
    name = next(
        name for name, value in state.items() if isinstance(value, dict) and "model.safetensors" in value
    )
    state[name]["model.safetensors"] = sha256_file(folder / "model.safetensors")
    del state["checksum"]
    (folder / "state.json").write_text(json.dumps(state | {"checksum": checkpoint.checksum(state)}))
    with serving(run) as server:
        for _ in range(2):
            reply = server.complete(model="x", prompt="the", max_tokens=5)
            assert reply.status == 500
            assert "its weights have diverged" in reply.json["error"]["message"]


def test_a_run_is_served_from_its_first_checkpoint_on_and_then_its_newer_ones(run: Path) -> None:
    aside = run.parent / "aside"
    shutil.move(run / "checkpoints", aside)
    (run / "checkpoints").mkdir()
    with serving(run) as server:
        assert "has no complete checkpoint yet" in server.said
        reply = server.complete(model="x", prompt="the", max_tokens=5)
        assert (reply.status, reply.json["error"]["code"]) == (503, "no_checkpoint")
        asked: dict[str, Any] = {"model": "x", "prompt": "the", "max_tokens": 1, "logprobs": 0}

        def probability() -> float:
            reply = server.complete(**asked, seed=1)
            return reply.json["choices"][0]["logprobs"]["token_logprobs"][0] if reply.status == 200 else 0.0

        shutil.copytree(aside / "step_00000002", run / "checkpoints" / "step_00000002")
        until("the first checkpoint", probability)
        first = probability()
        shutil.copytree(aside / "step_00000004", run / "checkpoints" / "step_00000004")
        until("the newer checkpoint", lambda: probability() != first)
