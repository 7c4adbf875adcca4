"""torch.compile on a CPU: measured where a run is long, remembered, never asked twice."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from overnight import compiling, runs
from overnight.config import Config, ModelConfig
from overnight.errors import Failure
from overnight.stopwatch import Measured
from overnight.terminal import Silent

LONG = Config(
    data="", run="", steps=10**9, batch_tokens=64, micro_batch=2, device="cpu", precision="fp32",
    compile="off", model=ModelConfig(1, 2, 16, 16, 50),
)  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nobody's real cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "overnight" / "compile.json"


@pytest.fixture
def takes(monkeypatch: pytest.MonkeyPatch) -> Callable[[float | str, float | str], list[str]]:
    """`takes(plain, compiled)`: what a step takes either way, or why it fails; the list of what is asked."""

    def set_up(plain: float | str, compiled: float | str) -> list[str]:
        asked: list[str] = []

        def measure(config: Config, n_tokens: int, *how: float) -> Measured:
            assert config.batch_tokens == config.micro_batch * config.model.block_size
            asked.append(config.compile)
            took = compiled if config.compile == "on" else plain
            if isinstance(took, str):
                raise Failure(took)
            return Measured([took], 1.0, None, 0.0)

        monkeypatch.setattr(compiling, "measure", measure)
        return asked

    return set_up


@pytest.mark.parametrize(("compiled", "pays"), [(80.0, True), (99.0, False), (130.0, False)])
def test_a_long_run_is_measured_once(
    compiled: float | str, pays: bool, takes: Callable[..., list[str]], cache: Path
) -> None:
    asked = takes(100.0, compiled)
    assert [compiling.pays(LONG, 50, Silent()) for _ in range(2)] == [pays, pays]
    assert asked == ["off", "on"]
    assert [value["choice"] == "on" for value in json.loads(cache.read_text()).values()] == [pays]


def test_another_model_or_micro_batch_is_another_question(takes: Callable[..., list[str]]) -> None:
    asked = takes(100.0, 80.0)
    for config in (LONG, replace(LONG, micro_batch=1), replace(LONG, model=replace(LONG.model, n_layer=2))):
        assert compiling.pays(config, 50, Silent())
    assert len(asked) == 6


def test_a_short_run_is_not_held_up(takes: Callable[..., list[str]], cache: Path) -> None:
    asked = takes(100.0, 80.0)
    assert not compiling.pays(replace(LONG, steps=100), 50, Silent())
    assert not asked
    assert not cache.exists()


def test_a_damaged_memory_is_made_anew(takes: Callable[..., list[str]], cache: Path) -> None:
    takes(100.0, 80.0)
    cache.parent.mkdir(parents=True)
    for damage in ("{", "[1]", '{"a": 1, "b": {}}'):
        cache.write_text(damage)
        assert compiling.pays(LONG, 50, Silent())
    assert len(json.loads(cache.read_text())) == 1


def test_a_cache_that_cannot_be_written_costs_nothing(takes: Callable[..., list[str]], cache: Path) -> None:
    takes(100.0, 80.0)
    cache.parent.parent.write_text("a file")
    assert compiling.pays(LONG, 50, Silent())


def test_what_fails_is_not_remembered(takes: Callable[..., list[str]], cache: Path) -> None:
    """A compiler may be installed, memory may get free."""
    for plain, compiled in (("out of memory", 80.0), (100.0, "no g++")):
        takes(plain, compiled)
        assert not compiling.pays(LONG, 50, Silent())
    assert not cache.exists()
    takes(100.0, 50.0)
    assert compiling.pays(LONG, 50, Silent())
    assert not compiling.pays(replace(LONG, steps=100), 50, Silent()), (
        "a short run does not pay for the start"
    )


def test_without_a_home_there_is_still_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert compiling.remembered().name == "compile.json"


def test_a_run_takes_the_answer_and_a_resumed_one_keeps_it(
    train: Callable[..., Any],
    takes: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiling, "WORTHWHILE", 0.0)
    run = tmp_path / "run"
    takes(100.0, 130.0)
    outcome = train(run, "--steps", 1)
    assert outcome.code == 0
    assert "a step is 0.77 times as fast, so it is off" in outcome.out
    asked = takes(100.0, 50.0)
    assert train(run, "--steps", 2, "--micro-batch", 2).code == 0
    assert not asked
    config, extra = runs.read_config(run)
    assert (config.compile, extra["auto"]["compile"]) == ("off", "off")
