"""Published results: compared only with what they can be compared with."""

import itertools
import math
from dataclasses import replace

import pytest

from overnight.config import Config, OptimConfig
from overnight.data.manifest import BY_FIRST_SHARD, Manifest
from overnight.evals import reference
from overnight.presets import gpt2_124m, modern_124m

EDU = Manifest(
    source="fineweb-edu:sample-10BT",
    request={},
    documents=1,
    tokens={"train": 9_853_989_344, "val": 100_000_000},
    bytes=1,
    dtype="uint16",
    split=BY_FIRST_SHARD,
    tokenizer={"kind": "gpt2"},
    shards=[],
)
LECTURE = gpt2_124m()
LLMC = replace(LECTURE, steps=18_865, optim=OptimConfig(min_lr=0.0, warmup_steps=700))


@pytest.mark.parametrize(
    "changes",
    [
        {"source": "text:/data/fineweb-edu"},
        {"source": "fineweb-edu:sample-100BT"},
        {"source": "shards:edu_fineweb10B"},
        {"split": "documents whose SHA-256 is 0 modulo 20"},
        {"tokens": {"train": 9, "val": 50_000_000}},
        {"tokenizer": {"kind": "bpe"}},
    ],
)
def test_other_data_gets_no_verdict(changes: dict) -> None:
    other = replace(EDU, **changes)
    assert reference.corpus(EDU) == "fineweb-edu"
    assert reference.corpus(other) is None
    assert reference.unusual(other, LECTURE, 1250, 9.9) is None
    assert list(reference.standing(other, 3.0)) == []


def test_the_bug_of_the_lectures_repository_would_have_been_seen() -> None:
    """DDP's flag set too late gave 4.5877 at step 1250 where 3.9518 was right (build-nanogpt#30)."""
    assert reference.unusual(EDU, LECTURE, 1250, 3.9518) is None
    warning = reference.unusual(EDU, LECTURE, 1250, 4.5877)
    assert warning is not None
    assert "NOT NORMAL: above 3.95 +- 0.1, the lecture's recipe" in warning
    assert "below" in (reference.unusual(EDU, LECTURE, 1250, 3.0) or "")
    assert reference.unusual(EDU, LECTURE, 1250, math.nan) is not None


@pytest.mark.parametrize("curve", reference.CURVES)
def test_curves_pass_through_their_points_and_fall(curve: reference.Curve) -> None:
    assert all(curve.expected(step) == (loss, 0.1 if step >= 1000 else 0.3) for step, loss in curve.points)
    known = [at[0] for step in range(200, curve.steps + 1) if (at := curve.expected(step))]
    assert all(a >= b for a, b in itertools.pairwise(known))
    assert curve.expected(100) is None


def test_a_curve_says_nothing_far_from_its_points() -> None:
    lecture = reference.CURVES[0]
    assert lecture.expected(5000) is None
    assert lecture.expected(19_000) is not None


@pytest.mark.parametrize(
    "config",
    [
        replace(LECTURE, steps=5000),
        replace(LECTURE, batch_tokens=524_288 // 2),
        replace(LECTURE, model=replace(LECTURE.model, n_layer=24)),
        replace(LECTURE, optim=replace(LECTURE.optim, lr=1e-3)),
    ],
)
def test_another_recipe_is_not_measured_by_this_curve(config: Config) -> None:
    assert reference.unusual(EDU, config, 1250, 9.9) is None


def test_each_corpus_has_its_own_curve() -> None:
    fineweb = replace(EDU, source="fineweb:sample-10BT")
    assert reference.unusual(fineweb, LLMC, 5000, 3.5535) is None
    assert "llm.c" in (reference.unusual(fineweb, LLMC, 5000, 3.9) or "")
    assert reference.unusual(EDU, LLMC, 5000, 3.9) is None


def test_the_modern_recipe_has_its_own_curve() -> None:
    fineweb, modern = replace(EDU, source="fineweb:sample-10BT"), modern_124m()
    modern = replace(modern, model=modern.model.sized())
    assert reference.unusual(fineweb, modern, 3250, 3.30) is None
    assert "track 3" in (reference.unusual(fineweb, modern, 3250, 3.45) or "")
    assert reference.unusual(fineweb, modern, 2500, 9.9) is None, "GPT-2's curves are not its own"
    assert reference.unusual(EDU, modern, 3250, 9.9) is None


def test_levels_name_whose_they_are() -> None:
    assert list(map(str, reference.standing(EDU, 3.05))) == [
        "better than 3.2924, OpenAI's GPT-2 124M (lecture notebook)"
    ]
    assert str(next(iter(reference.standing(EDU, 3.5)))).startswith("not better than 3.2924")
    asked = list(reference.standing_hellaswag("completion", 0.304, 10_042))
    assert [(one.better, one.theirs) for one in asked] == [(True, 0.2945), (False, 0.337), (False, 0.4893)]
    assert len(list(reference.standing_hellaswag("lm-eval", 0.304, 10_042))) == 2
    assert list(reference.standing_hellaswag("completion", 0.9, 1000)) == []
