"""LAMBADA: the last word, right or wrong, and its perplexity; perplexity of any text."""

import contextlib
import json
import math
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from overnight.data.tokens import Tokenizer
from overnight.errors import UserError
from overnight.evals import lambada, tasks
from overnight.models.gpt2 import GPT
from overnight.world import connect

Cli = Callable[..., Any]
PASSAGES = [
    "The night is long and dark",
    "it was only then that he saw the rhinoceros",
    "one two three",
    "a b",
]


def last_word(model: GPT, tokenizer: Tokenizer, text: str) -> tuple[float, bool]:
    """By the definition: the log-likelihood of the last word, and whether each of its tokens is likeliest."""
    context, _, word = text.rpartition(" ")
    before = tokenizer.encode(context).tolist()
    ids = tokenizer.encode(f"{context} {word}").tolist()
    with torch.no_grad():
        own = F.log_softmax(model.logits(model.hidden(torch.tensor([ids[:-1]]))).float(), -1)[
            0, len(before) - 1 :
        ]
    wanted = torch.tensor(ids[len(before) :])
    return own.gather(1, wanted[:, None]).sum().item(), bool((own.argmax(1) == wanted).all())


@pytest.mark.parametrize("fields", ["text", "context"])
def test_accuracy_and_perplexity_by_the_definition(
    opinionated: GPT, tokenizer: Tokenizer, tmp_path: Path, fields: str
) -> None:
    # The model's own favourite word, so that one answer is right.
    with torch.no_grad():
        start = torch.tensor([tokenizer.encode("The night").tolist()])
        logits = opinionated.logits(opinionated.hidden(start))[0, -1]
    favourite = next(
        text for text in (tokenizer.decode([i]) for i in logits.argsort(descending=True).tolist())
        if text.startswith(" ") and text[1:].isalpha() and text.isascii()
    )  # fmt: skip
    passages = [*PASSAGES, "The night" + favourite]
    lines = [
        {"text": text} if fields == "text"
        else {"context": text.rpartition(" ")[0], "continuation": " " + text.rpartition(" ")[2]}
        for text in passages
    ]  # fmt: skip
    path = tmp_path / "l.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    with connect("cpu") as world:
        found = dict(
            lambada.lambada(opinionated, tokenizer, lambada.read(path), world, contextlib.nullcontext)
        )
    expected = [last_word(opinionated, tokenizer, text) for text in passages]
    assert found["acc"] == sum(right for _, right in expected) / 5
    mean = sum(total for total, _ in expected) / 5
    assert found["perplexity"] == pytest.approx(math.exp(-mean), rel=1e-4)
    assert found["items"] == 5


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"text": "word"}', '{"context": "a"}', '{"context": 1, "continuation": "b"}']
)
def test_a_wrong_line_is_refused_with_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "l.jsonl"
    path.write_text(f'{{"text": "a b"}}\n{line}\n')
    with pytest.raises(UserError, match="line 2"):
        lambada.read(path)


def test_eval_does_several_tasks_at_once(cli: Cli, run: Path, hellaswag_file: Path) -> None:
    """A char model that knows few characters: files of its own."""
    Path("l.jsonl").write_text('{"text": "the night is long"}\n{"text": "one word after another"}\n')
    Path("t.txt").write_text("the night is long and the model learns")
    outcome = cli(
        "eval",
        "x",
        "--tasks",
        "val,lambada,perplexity",
        "--lambada-file",
        "l.jsonl",
        "--text-file",
        "t.txt",
        "--json",
    )
    assert (outcome.code, outcome.err) == (0, "")
    found = json.loads(outcome.out)
    assert list(found) == ["val", "lambada", "perplexity", "model"]
    assert found["val"].keys() == {"loss", "bits_per_byte", "tokens"}
    assert found["lambada"].keys() == {"acc", "perplexity", "items"}
    assert found["perplexity"].keys() == {"loss", "perplexity", "bits_per_byte", "tokens"}
    assert found["perplexity"]["tokens"] == 38  # every character; <|endoftext|> is the first context
    assert found["perplexity"]["perplexity"] == pytest.approx(math.exp(found["perplexity"]["loss"]))
    assert found["perplexity"]["bits_per_byte"] == pytest.approx(found["perplexity"]["loss"] / math.log(2))
    table = cli("eval", "x", "--tasks", "lambada", "--lambada-file", "l.jsonl")
    assert "LAMBADA perplexity" in table.out
    refused = cli("eval", "x", "--tasks", "hellaswag", "--hellaswag-file", hellaswag_file)
    assert refused.code == 2  # its characters are not this model's
    assert "is not one of" in refused.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--tasks hellaswagg", "unknown task 'hellaswagg'. Did you mean hellaswag?"),
        ("--tasks lambada", "lambada reads a file: give --lambada-file PATH"),
        ("--tasks perplexity", "perplexity reads a file: give --text-file PATH"),
        ("--tasks perplexity --text-file nowhere", "there is no file nowhere"),
        ("--tasks hellaswag --hellaswag-file nowhere", "cannot read the HellaSwag file nowhere"),
        ("--items -1", "items is -1: give 0 or more."),
    ],
)
def test_wrong_input_is_refused(cli: Cli, run: Path, arguments: str, message: str) -> None:
    refused = cli("eval", "x", *arguments.split())
    assert refused.code == 2
    assert message in refused.err
    assert len(refused.err.splitlines()) <= 3


def test_a_download_that_breaks_off_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Chunks that end too early, and an answer that is no HTTP."""
    broken = [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\nabc", b"garbage\r\n\r\n"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(tasks, "HELLASWAG_URL", f"http://127.0.0.1:{server.getsockname()[1]}/x")

        def answer() -> None:
            for content in broken:
                connection = server.accept()[0]
                with connection:
                    connection.recv(4096)
                    connection.sendall(content)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        for _ in broken:
            with pytest.raises(UserError, match="cannot download HellaSwag"):
                tasks.download_hellaswag(tmp_path / "downloads")
        thread.join(10)
    assert not (tmp_path / "downloads").exists()
