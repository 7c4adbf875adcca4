"""What a run says and records while it trains: its beginning, each update, what went wrong, its end."""

import contextlib
import math
import os
import shutil
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from overnight import __version__, plan, records, saved
from overnight.data.batches import Batches
from overnight.errors import UserError
from overnight.files import disk_problem, reason
from overnight.lock import Lock
from overnight.records import Records
from overnight.start import Start, describe
from overnight.state import State
from overnight.terminal import Status, duration, size
from overnight.trackers import Trackers
from overnight.visible import shell_path
from overnight.watch import WINDOW, Watch
from overnight.world import World, peak_flops


class Journal:
    """Every rank has one, so that all come to the same conclusions; the first alone records and speaks."""

    def __init__(self, start: Start, world: World, status: Status):
        self.start, self.config, self.run = start, start.config, start.run
        self.status, self.world = status, world
        self.records: Records | None = None
        self.remaking = False  # whether the run's folder is being made again
        self.first = self.step = start.state.step if start.state else 0  # of this session, and the newest
        peak = peak_flops(world.device, start.config.precision)
        self.peak = peak * world.size if peak else None

    def open(self, batches: Batches) -> None:
        """Begin to write behind the records that there are."""
        self.batches = batches
        losses: Iterator[float | None] = iter(())
        if self.world.is_main:
            self.trackers = Trackers(self.config, self.run, self.first, self.say)
            self.records = Records(self.run, self.disk_refuses, self.trackers.write)
            losses = (record["loss"] for record in records.sound(self.run) if record["kind"] == "train")
        self.watch = Watch(
            self.start.state.bad_steps if self.start.state else 0,
            deque((loss for loss in losses if loss is not None), WINDOW),
            self.config.precision == "fp16",
        )

    def close(self) -> None:
        if self.records:
            self.records.close()
            self.trackers.close()

    def sync(self, state: State) -> None:
        """Put on the disk what a checkpoint vouches for; called by the thread that saves it."""
        if self.records:
            self.records.sync(state.records_bytes)

    def mark(self, step: int, lock: Lock) -> tuple[int, str]:
        """Check that the records are still on the disk, then return their size in bytes and their SHA-256,
        for a checkpoint to vouch for."""
        assert self.records
        try:
            problem = "" if lock.lost() or not self.run.is_dir() else self.records.mend()
        except OSError as error:
            problem = f"cannot be looked at: {disk_problem(error)}"
        if problem:
            self.say(f"{self.run / records.FILE} {problem}.")
            self.event(step, "records_mended", {"problem": problem})
        return self.records.mark()

    def flush(self) -> None:
        """Write the records that wait, if the disk has room again."""
        if self.records:
            with contextlib.suppress(OSError):  # they go on waiting
                self.records.flush()

    def tokens(self, step: int) -> int:
        """Tokens trained on in the first `step` updates."""
        return self.batches.position(step) * self.config.model.block_size

    def event(self, step: int, name: str, detail: dict[str, Any]) -> None:
        if self.records:
            self.records.event(step, self.tokens(step), name, detail)

    def data_changed(self, error: Exception) -> None:
        """Record why the run ends here, whoever found it: a look between steps, a reader, validation."""
        self.event(self.step, "data_changed", {"problem": str(error).splitlines()[0]})

    def data_touched(self, problem: str) -> None:
        """Log that a shard was modified and then restored during training."""
        self.event(self.step, "data_touched", {"problem": problem})
        self.say(problem)

    def say(self, line: str) -> None:
        self.status.say(line)

    def disk_refuses(self, error: OSError) -> None:
        self.say(f"{self.run}: records wait in memory, training goes on: {disk_problem(error)}.")

    def announce(self, attention: str | None = None) -> None:
        """Say and record what begins here. attention: the kernel that was chosen."""
        start, config, world = self.start, self.config, self.world
        self.began = time.monotonic()
        here = {"size": world.size, "device": str(world.device), "threads": torch.get_num_threads()}
        restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        detail: dict[str, Any] = {"world": here, "auto": start.auto, "version": __version__}
        if attention:
            detail["attention"] = attention
        if start.resuming:
            detail |= {"changes": start.changes, "damaged": start.damaged, "restarts": restarts}
            detail |= {"notes": start.notes} if start.notes else {}
            for problem in start.damaged:
                self.say(f"damaged checkpoint moved aside: {problem}")
            for note in start.notes:
                self.say(note)
            for name, (was, now) in start.changes.items():
                self.say(f"{name.replace('_', '-')}: {was} -> {now}")
        self.event(self.first, "resume" if start.resuming else "start", detail)
        if start.auto.get("hellaswag_every") == 0:
            self.say("HellaSwag is left out: its file could not be had (--hellaswag-file PATH).")
        if world.is_main:
            with contextlib.suppress(OSError):
                self.check_room()
        ranks = f" on {world.size} ranks ({config.parallel})" if world.size > 1 else ""
        self.say(
            f"{'Resuming' if self.first else 'Training'} {self.run}"
            + (f" at step {self.first:,}" if self.first else "")
            + f": {plan.parameters(config.model) / 1e6:.1f} M parameters, {config.precision} on "
            f"{world.device}{ranks}, {config.steps:,} steps of {config.batch_tokens:,} tokens "
            f"({config.micro_batch} x {config.model.block_size} at a time)."
        )

    def make_folder_again(self, lock: Lock) -> None:
        """Make the run's folder again where it was moved or deleted while the run was training, so that its
        last checkpoint can be saved. An empty folder of its name will do, another one is left alone."""
        with contextlib.suppress(OSError, UserError):  # it is tried again
            if self.records and (self.remaking or is_free(self.run)):
                self.run.mkdir(parents=True, exist_ok=True)
                lock.move()
                self.remaking = True
                describe(self.start)
                self.records.write_again()
                self.remaking = False
                self.say(f"{self.run} was moved or deleted: it is made again for the last checkpoint.")

    def check_room(self) -> None:
        """Say so while somebody is awake if the disk will not hold the run's checkpoints."""
        there = [saved.folder(self.run, step) for step in saved.list_steps(self.run)]
        have = sum(file.stat().st_size for folder in there for file in folder.iterdir())
        free, need = shutil.disk_usage(self.run).free, plan.run_bytes(self.config) - have
        if free < need:
            self.say(f"The disk has {size(free)} free; this run's checkpoints want {size(need)} (--keep).")

    def update(self, step: int, loss: float, grad_norm: float, lr: float, seconds: float) -> None:
        """Update number `step` took so many seconds."""
        self.step = step
        rate = (self.tokens(step) - self.tokens(step - 1)) / seconds
        mfu = rate * plan.flops_per_token(self.config.model) / self.peak if self.peak else None
        if self.records:
            self.records.train(step, self.tokens(step), loss, lr, grad_norm, 1000 * seconds, rate, mfu)
        if step == 1 and not self.config.init_from:
            self.check_first_loss(loss)
        if self.watch.nonfinite(loss, grad_norm):
            row = self.watch.bad_steps
            self.event(step, "nonfinite", {"loss": loss, "grad_norm": grad_norm, "in_a_row": row})
            if row:
                self.say(
                    f"step {step:,}: loss {loss:.4g}, gradient norm {grad_norm:.4g}: "
                    f"this update did not happen ({row} in a row)."
                )
        elif sigmas := self.watch.spike(loss):
            self.event(step, "spike", {"loss": loss, "sigmas": round(sigmas, 1)})
            self.say(f"step {step:,}: the loss jumped to {loss:.4f}, {sigmas:.0f} standard deviations up.")
        self.status.update(lambda: self.progress(step, loss, lr, rate))

    def check_first_loss(self, loss: float) -> None:
        """A fresh model knows nothing: its loss is that of guessing evenly, ln(vocabulary). GPT-2's is larger
        by half the variance of its logits, 0.02 times a vector of length sqrt(n_embd); and, because its head
        is its embedding, up to 1.4 smaller where a token follows itself, as spaces do in code."""
        expected, least, most = math.log(self.start.data.tokenizer.vocab_size), 0.1, 0.1
        if self.config.model.architecture == "gpt2":
            variance = 0.02**2 * self.config.model.n_embd
            least, most = least + 0.5 * variance + 1.4 * self.repeats(), most + 0.5 * variance
        sane = expected - least <= loss <= expected + most
        self.event(0, "initial_loss", {"loss": loss, "ln_vocabulary": expected, "sane": sane})
        between = f"NOT between {expected - least:.2f} and {expected + most:.2f}"
        verdict = "as it should be" if sane else f"{between}: something is wrong with the model"
        self.say(f"Loss before training {loss:.4f}, ln(vocabulary) {expected:.4f}: {verdict}.")

    def repeats(self) -> float:
        """The share of step 1's tokens that follow themselves: by the text, not by what were its targets."""
        T = self.config.model.block_size
        windows = [self.batches.tokens.read(int(start), T + 1) for start in self.batches.windows(0)]
        return float(np.mean([np.mean(one[1:] == one[:-1]) for one in windows]))

    def progress(self, step: int, loss: float, lr: float, rate: float) -> str:
        per_step = (time.monotonic() - self.began) / max(1, step - self.first)
        left = duration(per_step * (self.config.steps - step))
        steps = f"step {step:,}/{self.config.steps:,}"
        return f"{steps}  loss {loss:.4f}  lr {lr:.2e}  {rate:,.0f} tokens/s  {left} left"

    def saved(self, step: int) -> None:
        """A checkpoint is on the disk."""
        self.event(step, "checkpoint", {"path": saved.folder(self.run, step).name})

    def save_failed(self, step: int, error: OSError) -> None:
        """A checkpoint was not saved; it is tried again."""
        try:
            names = saved.list_steps(self.run)
            newest = f"the newest is that of step {names[-1]:,}" if names else "there is none yet"
        except OSError as other:  # the folder cannot be read either
            newest = f"the others cannot be listed ({reason(other)})"
        self.event(step, "save_failed", {"error": str(error)})
        self.say(
            f"CHECKPOINT OF STEP {step:,} NOT SAVED: {disk_problem(error)}. It is tried again; {newest}."
        )

    def gone_back(self, step: int, first: int, back: int, skipped: list[list[int]]) -> None:
        """Steps `first` to `step` did not happen: the run goes on behind step `back`, without their data."""
        self.event(step, "gone_back", {"steps": [first, step], "to": back, "skipped": skipped})
        self.say(
            f"step {step:,}: {step - first + 1} updates in a row did not happen: going back to step "
            f"{back:,}, and on without their windows."
        )

    def left(self, step: int, why: str) -> None:
        """Stopped from outside, with everything saved."""
        self.event(step, why, {})
        saved = f"saved step {step:,}" if step else "no step was finished, so nothing is saved"
        self.say(f"{why.capitalize()}: {saved}. Run the same command again to resume.")

    def done(self, last_val: dict[str, float], compared: int, shards: int) -> None:
        """The last step is done and saved. compared: shards that this process has hashed, of all."""
        self.event(self.config.steps, "done", last_val)
        if compared < shards:
            self.say(
                f"{compared:,} of {shards:,} shards were compared with the manifest in the background; "
                "--verify compares all before a run begins."
            )
        self.say(
            f"Done: {self.config.steps:,} steps, {duration(time.monotonic() - self.began)} in this process. "
            f"Now: overnight report {shell_path(self.run)}, overnight sample {shell_path(self.run)}"
        )


def is_free(run: Path) -> bool:
    """Whether nothing is at this path, or an empty folder."""
    try:
        return not any(run.iterdir())
    except FileNotFoundError:
        return not run.is_symlink()


def complete(start: Start) -> str:
    """Record that a complete run is done, where that was not done, and mend its config.json, where that was
    damaged; what is wrong with its records, or ""."""
    assert start.state is not None
    if start.notes:
        describe(start)
    step = start.state.step
    problem = records.problem(start.run, start.state.records_bytes, start.state.records_sha256)
    found = [record for record in records.sound(start.run) if record["step"] == step]
    if any(record["kind"] == "event" and record["name"] == "done" for record in found):
        return problem
    records.rewind(start.run, start.state.records_bytes)  # a torn line would spoil the next
    vals = [record for record in found if record["kind"] == "val"]
    last_val = {name: vals[-1].get(name) for name in ("loss", "bits_per_byte")} if vals else {}
    with contextlib.closing(Records(start.run, lambda error: None)) as file:
        file.event(step, start.state.tokens, "done", last_val)
    return problem
