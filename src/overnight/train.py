"""The loop around the training step (step.py), and what is due after each."""

import gc
import math
import time
from collections import deque
from contextlib import ExitStack

import torch

from overnight import checkpoint, errors, journal
from overnight.checkpoint import State
from overnight.data.batches import Batches
from overnight.evaluator import Evaluator
from overnight.files import clear_disk_errors
from overnight.journal import Journal
from overnight.lock import Lock
from overnight.memory import clear_memory_errors
from overnight.models.networks import Network, build
from overnight.parallel import plain
from overnight.profiling import Profile
from overnight.saving import Saver
from overnight.start import Start, begin
from overnight.step import Engine, frozen_garbage
from overnight.stop import Stop
from overnight.terminal import Silent, Status
from overnight.watch import BadSteps
from overnight.world import Reading, World


def due(step: int, every: int) -> bool:
    """Whether something done every so many steps is done after `step` updates."""
    return every > 0 and step % every == 0


def say_complete(start: Start, world: World) -> int:
    """There is nothing to do. A run that was killed behind its last checkpoint gets its last event."""
    assert start.state is not None
    if world.is_main:
        with clear_disk_errors(f"training {start.run}"):
            journal.complete(start)
        Status().say(f"{start.run} is complete ({start.state.step:,} steps): nothing to do.")
    return errors.DONE


def train(start: Start, world: World, stop: Stop, lock: Lock) -> int:
    """Train from where `start` is to its last step. Returns the exit code (errors.py)."""
    status = Status() if world.is_main else Silent()
    with clear_disk_errors(f"training {start.run}"), clear_memory_errors(start.config, world.device):
        while True:  # once, but for runs that go back
            if not world.agrees(start.state.step if start.state else 0):
                raise errors.Failure(f"the ranks see different checkpoints: {start.run} must be one folder.")
            if world.is_main:
                begin(start, lock)
            world.barrier()  # the folder is as it should be before the others look into it
            with ExitStack() as stack:
                session = Session(start, world, status, stack)
                try:
                    with frozen_garbage():
                        return loop(session, stop)
                except BadSteps as row:
                    start = session.back_before(row)
            del session
            gc.collect()  # the model and all that acts on it, before there is another


def loop(session: "Session", stop: Stop) -> int:
    """Steps, and what is due after each. `step` counts updates done; update 1 is the first."""
    config = session.config
    stop.begin(config.max_minutes)
    for step in range(session.first + 1, config.steps + 1):
        last = step == config.steps
        asked = session.update(step, stop)
        val_loss = None
        if last or due(step, config.eval_every):
            val_loss = session.validate(step, None if last else config.val_tokens)
        if session.hellaswag_every and (last or due(step, session.hellaswag_every)):
            session.hellaswag(step)
        if last or due(step, config.sample_every):
            session.sample(step)
        if last or asked or session.save_due(step):
            session.save(step, val_loss)
        if asked and not last:
            return session.leave(step, asked)
    return session.finish()


class Session:
    """What one process holds while it trains: the model and all that acts on it."""

    def __init__(self, start: Start, world: World, status: Status, stack: ExitStack):
        config = start.config
        assert isinstance(config.hellaswag_every, int)
        self.hellaswag_every = config.hellaswag_every
        self.start, self.config, self.run, self.world = start, config, start.run, world
        self.journal = Journal(start, world, status)
        self.batches = Batches(
            start.data.split("train"), config.model.block_size, config.sequences, config.seed,
            config.loader.order, start.skipped,
        )  # fmt: skip
        self.model = initial_model(start)
        self.engine = Engine(self.model, config, self.batches, world, self.journal.say)
        stack.callback(self.engine.close)
        if start.state is not None:
            folder = checkpoint.folder(self.run, start.state.step)
            checkpoint.load_optimizer(folder, self.model, self.engine.optimizer)
            self.engine.scaler.load_state_dict(start.state.scaler)
        self.first = start.state.step if start.state else 0  # updates done before this session
        self.journal.open(self.batches)
        stack.callback(self.journal.close)
        self.saver = Saver(self.run, config.keep, self.journal)
        stack.callback(self.saver.close)
        self.evaluator = Evaluator(
            config, start.data, start.questions, world, self.engine.autocast, self.journal.records, status
        )
        self.last_val: dict[str, float] = {}
        self.readings: deque[tuple[int, float, Reading]] = deque()  # of updates whose numbers are not read
        self.clock = time.perf_counter()  # when the last update's numbers were there
        self.asked = ""
        self.save_owed = False
        self.journal.announce(self.engine.kernel)
        self.profile = Profile(config.profile, world.is_main, self.journal, world.device)
        stack.callback(self.profile.close)

    def update(self, step: int, stop: Stop) -> str:
        """Update number `step` (1 is the first). Returns why to stop, agreed on by all ranks, or ''."""
        if not self.readings:
            self.clock = time.perf_counter()
        loss, grad_norm = self.engine.update(step)
        asked = stop.asked()
        wishes = self.world.send([asked == "interrupted", asked == "preempted"])
        numbers = torch.cat([loss.reshape(1), grad_norm.reshape(1), self.world.sum(wishes)])
        self.readings.append((step, self.engine.lr(step), Reading(numbers)))
        self.settle(0 if self.profile.turns else self.world.lag)
        self.profile.step(step)
        return self.asked

    def settle(self, unread: int = 0) -> None:
        """Read the numbers of all but the newest `unread` updates. Raises BadSteps."""
        while len(self.readings) > unread:
            step, lr, reading = self.readings.popleft()
            loss, grad_norm, interrupted, preempted = reading.get()
            seconds, self.clock = time.perf_counter() - self.clock, time.perf_counter()
            self.journal.update(step, loss, grad_norm, lr, seconds)
            self.asked = "interrupted" if interrupted else "preempted" if preempted else self.asked
            if (count := self.journal.watch.bad_steps) >= self.config.train.max_bad_steps:
                raise BadSteps(step, count)
        self.saver.collect()

    def validate(self, step: int, limit: int | None) -> float:
        """Validation loss on the first `limit` tokens, or on all."""
        self.settle()
        with plain(self.model) as model:
            self.last_val = self.evaluator.validate(model, step, self.journal.tokens(step), limit)
        return self.last_val["loss"]

    def hellaswag(self, step: int) -> None:
        self.settle()
        with plain(self.model) as model:
            self.evaluator.hellaswag(model, step, self.journal.tokens(step))

    def sample(self, step: int) -> None:
        self.settle()
        with plain(self.model) as model:
            self.evaluator.sample(model, step, self.journal.tokens(step))

    def save_due(self, step: int) -> bool:
        """Whether to save now: every so many steps. While updates do not happen it is put off, so that the
        newest checkpoint stays a good one."""
        self.save_owed = self.save_owed or due(step, self.config.save_every)
        if self.save_owed:
            self.settle()
        return self.save_owed and not self.journal.watch.bad_steps

    def save(self, step: int, val_loss: float | None) -> None:
        """Begin to publish a checkpoint of this step; it is written while training goes on."""
        self.settle()
        self.save_owed = False
        self.saver.save(self.model, self.engine.optimizer, self.state(step, val_loss))

    def state(self, step: int, val_loss: float | None) -> State | None:
        """What a checkpoint of this step says beside its tensors; None but on the first rank."""
        if self.journal.records is None:
            return None
        return State(
            step=step,
            tokens=self.journal.tokens(step),
            seed=self.config.seed,
            data=self.start.data.fingerprint,
            records_bytes=self.journal.records.size(),
            val_loss=val_loss if val_loss is None or math.isfinite(val_loss) else None,
            scaler=self.engine.scaler.state_dict(),
            skipped=[list(one) for one in self.batches.skipped],
            bad_steps=self.journal.watch.bad_steps,
        )

    def back_before(self, row: BadSteps) -> Start:
        """Where to go on after so many bad steps: at the newest checkpoint from before them, without their
        windows. Raises Failure where that has not helped."""
        first = row.step - row.count + 1
        self.saver.collect(wait=True)
        self.world.barrier()  # nobody writes, all look
        state, damaged = checkpoint.newest_sound(self.run, usable=lambda state: not state.bad_steps)
        back = state.step if state else 0
        if self.start.gone_back and back == self.first:
            self.journal.event(row.step, "gave_up", {"steps": [first, row.step], "checkpoint": back})
            start_from = f"--init-from {self.run}@{back} " if back else ""
            raise errors.Failure(
                f"loss or gradient not finite in steps {first:,} to {row.step:,}, again after going back to "
                f"step {back:,} and leaving out the windows of the first time: giving up.",
                f"Try a lower learning rate in a new run: --run NAME {start_from}--optim.lr "
                f"{self.config.optim.lr / 2:g}",
            )
        skipped = self.batches.without(first - 1, row.step - 1)
        self.journal.gone_back(row.step, first, back, skipped)
        return self.start.back_to(state, damaged, skipped)

    def leave(self, step: int, reason: str) -> int:
        """Stopped from outside, with everything saved."""
        self.saver.make_sure()
        self.journal.left(step, reason)
        return errors.INTERRUPTED if reason == "interrupted" else errors.SAVED

    def finish(self) -> int:
        """The last step is done and saved."""
        self.saver.make_sure()
        self.journal.done(self.last_val)
        return errors.DONE


def initial_model(start: Start) -> Network:
    """The weights to begin with: a checkpoint's, those of --init-from, or random ones."""
    config, n_tokens = start.config.model, start.data.tokenizer.vocab_size
    model = build(config, n_tokens)
    if start.state is not None:
        checkpoint.load_weights(checkpoint.folder(start.run, start.state.step), model)
    elif start.donor is not None:
        model.load_state_dict(start.donor.fit(config, n_tokens))
    else:
        model.init_weights(start.config.seed)
    return model
