"""The MODEL grammar: what a user may write where a model is wanted.

runs/NAME, NAME or any path of a run    its newest complete checkpoint
the same with @STEP                     the checkpoint of that step
hf:gpt2, hf:USER/REPOSITORY, hf:PATH    GPT-2 as transformers keeps it, on the hub or in a folder
llmc:FILE                               a model file of llm.c
nanogpt:FILE                            a ckpt.pt of nanoGPT
"""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from overnight import checkpoint, saved
from overnight.config import Config
from overnight.data import tokens
from overnight.data.manifest import Data
from overnight.data.tokens import Tokenizer
from overnight.errors import UserError
from overnight.models.networks import Network
from overnight.runs import TOKENIZER, existing, read_config, vouched_config
from overnight.state import State
from overnight.terminal import complain
from overnight.visible import shell_path
from overnight.weights import hf, llmc, nanogpt
from overnight.weights.tensors import Weights, check
from overnight.world import choose_precision

OTHERS = ("hf:", "llmc:", "nanogpt:")  # other people's weights


@dataclass(frozen=True)
class Loaded:
    """A model ready to use, and where it comes from."""

    model: Network
    """In evaluation mode."""
    tokenizer: Tokenizer | None
    """None for other people's weights that come without one."""
    weights: Weights
    """On the CPU."""
    name: str
    """The MODEL, pinned: a run to its step, a repository to its commit."""
    origin: str
    """For people: 'runs/quickstart at step 2,500', or the name of other people's weights."""
    config: Config | None = None
    """Of the run; None for other people's weights, as for the next two."""
    run: Path | None = None
    step: int | None = None
    damaged: tuple[str, ...] = ()
    """What is wrong with newer checkpoints of the run, and with its config."""
    data: str = ""
    """Fingerprint of the data that the run was trained on."""


def split_step(name: str) -> tuple[str, str]:
    """RUN@STEP -> (RUN, STEP); (name, '') without one."""
    base, _, at = name.rpartition("@")
    return (name, "") if not base or "/" in at or os.sep in at else (base, at)  # an @ of a folder's name


def checkpoint_of(name: str) -> tuple[Path, State, list[str]]:
    """MODEL -> the folder of a checkpoint that is complete and intact, its state, and what is wrong with
    newer ones, which is said, too; two levels up is its run. Raises UserError with the remedy."""
    base, at = split_step(name)
    run = existing(base)
    steps = saved.list_steps(run)
    if not at:
        state, wrong = saved.newest_sound(run, (saved.WEIGHTS,))
        if state is None:
            read_config(run)
            raise UserError(f"the run {run} has no complete checkpoint yet: train it first.", *wrong)
        if wrong:
            complain(f"overnight: {run}: {'; '.join(wrong)}. The checkpoint of step {state.step:,} is used.")
        return saved.folder(run, state.step), state, wrong
    if not at.isdecimal() or len(at) > 18 or int(at) not in steps:
        have = ", ".join(map(str, steps)) or "none"
        raise UserError(f"{run} has no checkpoint of step {at}. It has: {have}.")
    folder = saved.folder(run, int(at))
    try:
        return folder, saved.check(folder, (saved.WEIGHTS,)), []
    except saved.Damaged as error:
        raise UserError(f"the checkpoint {name} is damaged: {error}.") from None


def precision(wanted: str, loaded: Loaded, device: torch.device) -> str:
    """What to compute in: as the run did, where the device is of the same kind, unless told otherwise."""
    if wanted == "auto" and loaded.config is not None and loaded.config.device == device.type:
        return loaded.config.precision
    return choose_precision(wanted, device)


def of_others(name: str) -> tuple[Weights, str]:
    """The weights that hf:, llmc: or nanogpt: name, and that name pinned to the commit of a repository."""
    prefix, _, rest = name.partition(":")
    if prefix == "llmc":
        return llmc.read(Path(rest)), name
    if prefix == "nanogpt":
        return nanogpt.read(Path(rest)), name
    folder, pinned = hf.find(rest)
    return hf.read(folder), f"hf:{pinned}"


def of_checkpoint(folder: Path, state: State) -> tuple[Weights, Config, str]:
    """The weights in a run's checkpoint, the run's config, and what is wrong with config.json, or "". What
    the checkpoint was saved with counts: raises UserError for another tokenizer, and warns if its copy of
    the config is used."""
    run = folder.parent.parent
    config, _, problem = vouched_config(run, state.config)
    if problem:
        complain(f"overnight: {problem} The copy in {folder.name} is used.")
    tokenizer = tokens.load(run / TOKENIZER)
    if state.tokenizer not in ("", tokenizer.sha256):
        raise UserError(
            f"{run / TOKENIZER} is damaged: it is not the tokenizer that {folder.name} was trained with.",
            f"Copy {Path(config.data) / TOKENIZER} there, or resume the training, which does that.",
        )
    tensors = checkpoint.read_tensors(folder / saved.WEIGHTS)
    check({name: tuple(tensor.shape) for name, tensor in tensors.items()}, config.model, folder)
    return Weights(config.model, tensors, tokenizer, tokenizer.vocab_size), config, problem


def step_of(folder: Path) -> int:
    """The step of a checkpoint's folder."""
    return int(folder.name.removeprefix("step_"))


def load(name: str, device: torch.device, tokenizer: str = "") -> Loaded:
    """MODEL -> a model on `device`, with its tokenizer or, if it has none, that of the file `tokenizer`.

    Raises UserError with the remedy for what is missing, damaged or no GPT-2.
    """
    if name.startswith(OTHERS):
        found, pinned = of_others(name)
        own = found.tokenizer or (tokens.load(Path(tokenizer)) if tokenizer else None)
        return Loaded(found.model().to(device), own, found, pinned, name)
    folder, state, wrong = checkpoint_of(name)
    found, config, problem = of_checkpoint(folder, state)
    run, step = folder.parent.parent, step_of(folder)
    pinned = name if name.endswith(f"@{step}") else f"{name}@{step}"
    origin = f"{run} at step {step:,}"
    model = found.model().to(device)
    damaged = (*wrong, *filter(None, [problem]))
    return Loaded(model, found.tokenizer, found, pinned, origin, config, run, step, damaged, state.data)


def tokenizer_name(name: str, tokenizer: Tokenizer) -> str:
    """What to give as --tokenizer of `prepare` for the tokenizer of a MODEL, as a word of a command line."""
    if tokenizer.kind == "gpt2":
        return "gpt2"
    if name.startswith("hf:"):
        return shell_path(Path(name.removeprefix("hf:")) / hf.TOKENIZER)
    return shell_path(existing(split_step(name)[0]) / TOKENIZER)


def trained_on(loaded: Loaded, name: str) -> Data:
    """The data that a run was trained on. Raises UserError where there is none, or other data by now."""
    if loaded.config is None:
        raise UserError(f"{name} comes without data: give --data DIR.")
    data = Data(Path(loaded.config.data))
    if data.fingerprint != loaded.data:
        raise UserError(
            f"{data.folder} is not the data that {loaded.origin} was trained on (fingerprints differ).",
            "To evaluate on it nevertheless, give it as --data.",
        )
    return data


def check_data(loaded: Loaded, data: Data) -> None:
    """Raise UserError unless the model can read the data's ids: the tokenizers are the same or, for weights
    without one, every id of the validation split has a row."""
    if loaded.tokenizer is not None and loaded.tokenizer.sha256 != data.tokenizer.sha256:
        raise UserError(
            f"{data.folder} was made with another tokenizer than {loaded.origin}'s.",
            f"Prepare it again with --tokenizer {tokenizer_name(loaded.name, loaded.tokenizer)}",
        )
    if loaded.tokenizer is None:
        highest = data.split("val").highest()
        if highest >= loaded.model.n_tokens:
            raise UserError(
                f"{data.folder} has the id {highest}, {loaded.origin} only {loaded.model.n_tokens} ids: "
                "prepare the data with the tokenizer that the model was trained with."
            )
