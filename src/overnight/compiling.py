"""Whether torch.compile pays for a run on this CPU: measured once for its model and micro-batch, remembered.

On a GPU it does. On a CPU there is little for it to fuse, every start is half a minute slower, and which side
wins depends on the processor, so the run's own steps are timed both ways.
"""

import contextlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from overnight import plan
from overnight.config import Config, OptimConfig
from overnight.errors import Failure, UserError
from overnight.files import read_json, to_json, write_synced
from overnight.machine import cpu_name
from overnight.private import cache_folder
from overnight.stopwatch import measure
from overnight.terminal import Status, duration

SLOW = 50e9  # FLOP/s of a thread: what common processors reach in fp32
WORTHWHILE = 3600.0  # seconds that a run must last at that rate, for a measurement of minutes to pay
LEAST_GAIN = 1.05
STEPS, SECONDS, WARM_UP, LEAST = 10, 10.0, 1, 2
START = 40.0  # seconds, about, before there are steps: two processes, a compilation


def pays(config: Config, n_tokens: int, status: Status) -> bool:
    """Whether to compile this run (resolved, on a CPU, one process). Measures where that was not done before
    and the run is long enough."""
    if expected_seconds(config, plan.run_tokens(config)) < WORTHWHILE:
        return False
    path, key = remembered(), key_of(config)
    known = read(path)
    if key not in known:
        takes = START + 2 * max(
            SECONDS, (WARM_UP + LEAST) * expected_seconds(config, micro_batch_tokens(config))
        )
        status.say(
            f"Measuring, this once, whether torch.compile pays here: about {duration(takes)} "
            "(--compile off: without)."
        )
        try:
            found = measured(config, n_tokens)
            known = read(path) | {key: found}  # again: that took minutes, and others write there too
        except Failure as error:  # not remembered: compilers get installed, and memory gets free
            status.say(f"It could not be measured, so it is off: {error}")
            return False
        said = "With torch.compile a step is {gain:.2f} times as fast, so it is {choice} (on from {least})."
        status.say(said.format(**known[key], least=LEAST_GAIN))
        with contextlib.suppress(OSError):  # then it is measured again next time
            write_synced(path, to_json(known))
    return known[key]["choice"] == "on"


def measured(config: Config, n_tokens: int) -> dict[str, Any]:
    """Both ways, in milliseconds a step. Raises Failure where one does not work."""
    config = replace(config, batch_tokens=micro_batch_tokens(config), optim=OptimConfig())  # once a step
    plain = measure(replace(config, compile="off"), n_tokens, STEPS, SECONDS, WARM_UP, LEAST).ms
    compiled = measure(replace(config, compile="on"), n_tokens, STEPS, SECONDS, WARM_UP, LEAST).ms
    gain = plain / compiled
    choice = "on" if gain >= LEAST_GAIN else "off"
    return {"plain_ms": plain, "compiled_ms": compiled, "gain": gain, "choice": choice}


def expected_seconds(config: Config, tokens: int) -> float:
    """How long so many tokens will take, roughly."""
    return plan.flops_per_token(config.model) * tokens / (SLOW * torch.get_num_threads())


def micro_batch_tokens(config: Config) -> int:
    assert isinstance(config.micro_batch, int)
    return config.micro_batch * config.model.block_size


def key_of(config: Config) -> str:
    """What the answer depends on."""
    here = {"torch": torch.__version__, "cpu": cpu_name(), "threads": torch.get_num_threads()}
    model, train = asdict(config.model), asdict(config.train)
    how = {"micro_batch": config.micro_batch, "precision": config.precision}
    return json.dumps(here | how | model | train, sort_keys=True)


def remembered() -> Path:
    """The file of answers, in the user's cache folder."""
    return cache_folder() / "compile.json"


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The answers so far; none where the file is not there or damaged."""
    try:
        found = read_json(path, "answers").items()
    except UserError:
        return {}
    return {key: value for key, value in found if isinstance(value, dict) and "choice" in value}
