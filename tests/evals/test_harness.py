"""EleutherAI's lm-eval on our models, offline: it agrees with our own HellaSwag on the same items."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from overnight.data.tokens import Tokenizer
from overnight.decode import Sampling
from overnight.errors import UserError
from overnight.evals import hellaswag
from overnight.evals.harness import OvernightLM, harness, numbers
from overnight.generate import texts
from overnight.models.gpt2 import GPT
from overnight.world import connect

TASK = """
task: toy_hellaswag
dataset_path: json
dataset_kwargs:
  data_files:
    validation: {file}
output_type: multiple_choice
validation_split: validation
process_docs: !function utils.process_docs
doc_to_text: "{{{{query}}}}"
doc_to_target: "{{{{label}}}}"
doc_to_choice: "choices"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture
def toy(tmp_path: Path, hellaswag_file: Path, monkeypatch: pytest.MonkeyPatch) -> TaskManager:
    """lm-eval's own HellaSwag, its code included, on our file."""
    import lm_eval.tasks.hellaswag as theirs

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    lines = [json.loads(line) for line in hellaswag_file.read_text().splitlines()]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(line | {"label": str(line["label"])}) + "\n" for line in lines))
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "toy.yaml").write_text(TASK.format(file=data))
    (folder / "utils.py").write_text((Path(next(iter(theirs.__path__))) / "utils.py").read_text())
    return TaskManager(include_path=str(folder), include_defaults=False)


def test_it_agrees_with_our_own_hellaswag(
    opinionated: GPT, tokenizer: Tokenizer, hellaswag_file: Path, toy: TaskManager
) -> None:
    questions = hellaswag.read(hellaswag_file)
    with connect("cpu") as world:
        lm = OvernightLM(opinionated, tokenizer, world, contextlib.nullcontext)
        found = simple_evaluate(lm, tasks=["toy_hellaswag"], task_manager=toy, bootstrap_iters=0)
        ours = dict(
            hellaswag.hellaswag(opinionated, tokenizer, questions, "lm-eval", world, contextlib.nullcontext)
        )
        items = [hellaswag.to_item(question, "lm-eval", tokenizer) for question in questions]
        scores = hellaswag.score(opinionated, items, world, contextlib.nullcontext)
    theirs = numbers(found["results"]["toy_hellaswag"])
    assert (theirs["acc"], theirs["acc_norm"]) == (ours["acc"], ours["acc_norm"])
    for sample, of_item in zip(found["samples"]["toy_hellaswag"], scores, strict=True):
        answers = [float(response[0]) for response in sample["filtered_resps"]]
        assert answers == pytest.approx([one.log_likelihood for one in of_item], abs=1e-3)


class Request:
    def __init__(self, *args: Any):
        self.args = args


def test_rolling_likelihood_is_lm_evals(opinionated: GPT, tokenizer: Tokenizer) -> None:
    """Windows of the context side by side, each token predicted once; the last window reaches back, so that
    its tokens have a whole context too."""
    text = "the night is long and the model learns " * 20
    ids = [tokenizer.eot, *tokenizer.encode(text).tolist()]
    assert (len(ids) - 1) % 64
    expected = 0.0
    for at in range(1, len(ids), 64):
        end = min(at + 64, len(ids))
        window = torch.tensor([ids[max(0, end - 65) : end]])
        with torch.no_grad():
            losses = opinionated.token_losses(window[:, :-1], window[:, 1:])[0]
        expected -= losses[-(end - at) :].double().sum().item()
    with connect("cpu") as world:
        lm = OvernightLM(opinionated, tokenizer, world, contextlib.nullcontext)
        found = lm.loglikelihood_rolling([Request(text), Request("")])
    assert found == [pytest.approx(expected, rel=1e-6), 0.0]


def test_text_is_generated_up_to_a_stop(opinionated: GPT, tokenizer: Tokenizer) -> None:
    (whole,) = texts(opinionated, tokenizer, ["The night"], 20, Sampling(temperature=0.0), 0)
    stop = whole[5:7]
    with connect("cpu") as world:
        lm = OvernightLM(opinionated, tokenizer, world, contextlib.nullcontext)
        how = {"until": [stop], "max_gen_toks": 20}
        found = lm.generate_until([Request("The night", how), Request("The night", how | {"until": ["\0"]})])
    assert found == [whole[: whole.index(stop)], whole]


def test_an_unknown_task_is_refused(cli: Callable[..., Any], run: Path) -> None:
    refused = cli("eval", "x", "--harness", "no_such_task_at_all")
    assert refused.code == 2
    assert "lm-eval has no task no_such_task_at_all" in refused.err


def test_how_text_is_generated_follows_lm_evals_rules(opinionated: GPT, tokenizer: Tokenizer) -> None:
    """Not drawing wins over a temperature, lengths have several names, empty stops stop nothing."""
    greedy = {"until": [], "max_gen_toks": 5}
    others = [
        {"until": [], "max_gen_toks": 5, "do_sample": False, "temperature": 1.0},
        {"until": None, "max_new_tokens": 5},
        {"until": [""], "max_gen_toks": 5},
    ]
    with connect("cpu") as world:
        lm = OvernightLM(opinionated, tokenizer, world, contextlib.nullcontext)
        first, *rest = lm.generate_until([Request("The night", how) for how in (greedy, *others)])
    assert first
    assert rest == [first] * 3


def test_a_continuation_without_tokens_of_its_own_is_refused(opinionated: GPT, tokenizer: Tokenizer) -> None:
    with connect("cpu") as world:
        lm = OvernightLM(opinionated, tokenizer, world, contextlib.nullcontext)
        with pytest.raises(UserError, match="'believable' is, which has no token of its own"):
            lm.loglikelihood([Request("the un", "believable")])


@pytest.mark.parametrize("tasks", ["hellaswag", "hellasw*"])
def test_data_that_cannot_be_fetched_is_no_traceback(
    opinionated: GPT, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tasks: str
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with connect("cpu") as world, pytest.raises(UserError, match="lm-eval cannot read its data"):
        harness(opinionated, tokenizer, [tasks], 2, world, contextlib.nullcontext)
