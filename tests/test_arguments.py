"""The command line is understood, or refused in words: near misses, bad values, missing ones."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from overnight.arguments import flatten, option_names, parse
from overnight.checks import fields_of
from overnight.config import Config
from overnight.errors import UserError
from overnight.presets import PRESETS
from overnight.verbs.doctor import Doctor
from overnight.verbs.eval import Eval
from overnight.verbs.export import Export
from overnight.verbs.inspect import Inspect
from overnight.verbs.plan import Plan
from overnight.verbs.prepare import Prepare
from overnight.verbs.report import Report
from overnight.verbs.sample import Sample
from overnight.verbs.serve import Serve


def understood(*arguments: str) -> Config:
    return parse(Config, "overnight train shakespeare-cpu", list(arguments), PRESETS["shakespeare-cpu"]())


def refusal(*arguments: str) -> str:
    with pytest.raises(UserError) as raised:
        understood(*arguments)
    return str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        ("--steps 3", "steps", 3),
        ("--steps=3", "steps", 3),
        ("--steps 3 --steps 4", "steps", 4),
        ("--batch_tokens 1536", "batch_tokens", 1536),
        ("--model.n_head 2", "model.n_head", 2),
        ("--model.n-head=2", "model.n_head", 2),
        ("--micro-batch 6", "micro_batch", 6),
        ("--micro-batch auto", "micro_batch", "auto"),
        ("--deterministic", "deterministic", True),
        ("--no-verify", "verify", False),
        ("--model.bias", "model.bias", True),
        ("--optim.lr 3e-4", "optim.lr", 3e-4),
        ("--optim.betas 0.8 0.9", "optim.betas", (0.8, 0.9)),
        ("--loader.order sequential", "loader.order", "sequential"),
        ("--sample.prompt=--x", "sample.prompt", "--x"),
        ("--max-minutes 5", "max_minutes", 5.0),
    ],
)
def test_an_option_changes_its_field_and_no_other(arguments: str, field: str, value: Any) -> None:
    before, after = (dict(fields_of(config)) for config in (understood(), understood(*arguments.split())))
    assert after == before | {field: value}
    assert type(after[field]) is type(value)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("--stepz", "--steps"), ("--step", "--steps"), ("--stepz=3", "--steps"),
        ("--model.n-heads", "--model.n-head"), ("--n-head", "--model.n-head"), ("--betas", "--optim.betas"),
        ("--model.nobias", "--model.no-bias"), ("--batchtokens", "--batch-tokens"),
        ("--no-optim.fused", "--optim.no-fused"),
    ],
)  # fmt: skip
def test_a_mistyped_option_is_refused_with_the_nearest(wrong: str, right: str) -> None:
    expected = (
        f"overnight train shakespeare-cpu: unknown option {wrong.split('=')[0]}. Did you mean {right}? "
    )
    assert refusal(wrong, "3") == expected + "overnight train shakespeare-cpu --help lists all."


def test_all_mistyped_options_are_named_at_once() -> None:
    message = refusal("--stepz", "3", "--sed", "1", "--xylophone", "--model.n-heads", "2")
    assert len(message.split("\n")) <= 3
    for word in ("--stepz", "--sed", "--xylophone", "--model.n-heads"):
        assert f"unknown option {word}." in message


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ("--steps x", "--steps"), ("--steps 1.5", "--steps"), ("--steps", "--steps"),
        ("--seed --steps 3", "--seed"), ("--optim.lr fast", "--optim.lr"),
        ("--optim.betas 0.9", "--optim.betas"), ("--micro-batch most", "--micro-batch"),
        ("--optim.betas 0.9 x", "--optim.betas"), ("--device tpu", "--device"),
        ("--precision fp8", "--precision"), ("--deterministic=maybe", "maybe"),
        ("--model.activation relu", "--model.activation"), ("--loader.order random", "--loader.order"),
        ("surplus", "surplus"), ("-x", "-x"),
    ],
)  # fmt: skip
def test_a_bad_value_is_refused_with_its_option(arguments: str, word: str) -> None:
    message = refusal(*arguments.split())
    assert word in message
    assert len(message.split("\n")) == 1
    assert not re.search(r"[│╭╮╰╯─]|\x1b", message)
    assert message.endswith("overnight train shakespeare-cpu --help lists the options.")


@pytest.mark.parametrize(("kind", "verb"), [(Eval, "eval"), (Sample, "sample")])
def test_a_missing_model_is_refused_with_what_it_may_be(kind: Any, verb: str) -> None:
    with pytest.raises(UserError, match=rf"overnight {verb}: .*runs/NAME"):
        parse(kind, f"overnight {verb}", [])


KINDS = [Config, Prepare, Eval, Sample, Inspect, Export, Plan, Report, Serve, Doctor]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_known_options_are_tyros(kind: Any, capsys: pytest.CaptureFixture[str]) -> None:
    default = PRESETS["quickstart"]() if kind is Config else None
    with pytest.raises(SystemExit) as end:
        parse(kind, "overnight verb", ["--help"], default)
    assert end.value.code == 0
    heads = re.findall(
        r"^[│ ]+((?:-[a-z], )?--[a-z].*?)(?:  |│|$)", capsys.readouterr().out, flags=re.MULTILINE
    )
    shown = {word for head in heads for word in re.findall(r"--[\w.-]+", head)}
    assert shown - {"--help"} == set(option_names(kind))


IN_UNICODE = """
╭─ Parsing error ──────────────────╮
│ Error parsing \x1b[1m--steps\x1b[0m: no   │
│ number                           │
│ ──────────────────────────────── │
│ For full helptext, run x --help  │
╰──────────────────────────────────╯
"""
IN_ASCII = """
  Parsing error
  --------------------------------
  Error parsing --steps: no
  number
  --------------------------------
  For full helptext, run x --help
"""


@pytest.mark.parametrize("box", [IN_UNICODE, IN_ASCII])
def test_a_box_becomes_a_line(box: str) -> None:
    """tyro draws with dashes where the terminal's encoding has no lines."""
    assert flatten(box) == "Error parsing --steps: no number."


def test_options_can_come_in_any_order_before_and_behind(cli: Callable[..., Any]) -> None:
    wrong = ["--data", "nowhere", "--steps", "3"]
    assert cli("train", "shakespeare-cpu", *wrong) == cli("train", *wrong, "shakespeare-cpu")
