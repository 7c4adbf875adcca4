"""The loop around the training step (step.py), and what is due after each."""

import gc
import math
import time
from collections import deque
from contextlib import ExitStack

import torch

from overnight import checkpoint, errors, journal, saved
from overnight.data.batches import Batches
from overnight.data.integrity import Integrity
from overnight.data.shards import RESTORE, ChangedData
from overnight.evaluator import Evaluator
from overnight.files import clear_disk_errors
from overnight.journal import Journal
from overnight.lock import Lock
from overnight.memory import clear_memory_errors
from overnight.models.networks import Network, build
from overnight.parallel import plain
from overnight.presets import usual_lr
from overnight.profiling import Profile
from overnight.saving import Saver
from overnight.start import Start, begin
from overnight.state import State
from overnight.step import Engine, frozen_garbage
from overnight.stop import Stop, agreed, as_numbers
from overnight.terminal import Silent, Status
from overnight.visible import shell_path
from overnight.watch import BadSteps
from overnight.world import Reading, World


def due(step: int, every: int) -> bool:
    """Whether something done every so many steps is done after `step` updates."""
    return every > 0 and step % every == 0


def say_complete(start: Start, world: World) -> int:
    """There is nothing to do. A run that was killed after its last checkpoint gets its last event."""
    assert start.state is not None
    if world.is_main:
        with clear_disk_errors(f"training {start.run}"):
            problem = journal.complete(start)
        for note in [*start.notes, *([f"{start.run}: {problem}."] if problem else [])]:
            Status().say(note)
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
                start = begin(start, lock)
            world.barrier()  # the folder is as it should be before the others look into it
            with ExitStack() as stack:
                session = Session(start, world, stop, lock, status, stack)
                try:
                    with frozen_garbage():
                        return loop(session)
                except BadSteps as row:
                    start = session.back_before(row)
                except ChangedData as error:
                    session.journal.data_changed(error)
                    raise
            del session
            gc.collect()  # the model and all that acts on it, before there is another


def loop(session: "Session") -> int:
    """Steps, and what is due after each. `step` counts updates done; update 1 is the first. Asked to stop, a
    run leaves undone what can be done after its resume: a half step, an evaluation."""
    config, step = session.config, session.first
    session.stop.begin(config.max_minutes)
    asked, owed = session.evaluate(step, session.owed)
    while not asked and step < config.steps:
        try:
            asked = session.update(step + 1)
        except errors.Abandoned as abandoned:
            return session.leave(step, str(abandoned), owed)
        step += 1
        owed = session.due(step)
        if asked in ("", "time"):
            urgent, owed = session.evaluate(step, owed)
            asked = urgent or asked
        if not asked and (step == config.steps or session.save_due(step)):
            session.save(step, owed)
    return session.leave(step, asked, owed) if asked and (owed or step < config.steps) else session.finish()


class Session:
    """What one process holds while it trains: the model and all that acts on it."""

    def __init__(self, start: Start, world: World, stop: Stop, lock: Lock, status: Status, stack: ExitStack):
        config = start.config
        self.start, self.config, self.run, self.world, self.stop = start, config, start.run, world, stop
        self.first = start.state.step if start.state else 0  # updates done before this session
        self.journal = Journal(start, world, status)
        self.batches = Batches(
            start.data.split("train"), config.model.block_size, config.sequences, config.seed,
            config.loader.order, start.skipped,
        )  # fmt: skip
        self.model = initial_model(start)
        self.engine = Engine(self.model, config, self.batches, world, self.journal.say)
        stack.callback(self.engine.close)
        if start.state is not None:
            checkpoint.load_optimizer(saved.folder(self.run, self.first), self.model, self.engine.optimizer)
            self.engine.scaler.load_state_dict(start.state.scaler)
        self.saved = self.first  # the step of the newest checkpoint
        self.journal.open(self.batches)
        stack.callback(self.journal.close)
        self.saver = Saver(self.run, config.keep, self.journal, lock)
        stack.callback(self.saver.close)
        self.evaluator = Evaluator(
            config, start.data, start.questions, world, self.engine.autocast, self.journal.records, status,
            stop.urgent,
        )  # fmt: skip
        self.integrity = Integrity(start.data, world.first_on_host, self.journal.data_touched)
        stack.callback(self.integrity.close)
        self.owed = start.state.owed if start.state else []  # evaluations of step `first` that are not done
        self.last_val: dict[str, float] = {}
        self.val_loss = (-1, math.nan)  # the newest, and its step
        self.readings: deque[tuple[int, float, Reading]] = deque()  # of updates whose numbers are not read
        self.clock = time.perf_counter()  # when the last update's numbers were there
        self.reason = ""  # to stop, agreed on by all ranks
        self.save_owed = False
        self.journal.announce(self.engine.kernel)
        self.profile = Profile(config.profile, world.is_main, self.journal, world.device)
        stack.callback(self.profile.close)

    def urgent(self) -> str:
        """Why this rank should stop at once, or ''."""
        return "changed" if self.integrity.look() else self.stop.urgent()

    def update(self, step: int) -> str:
        """Update number `step` (1 is the first). Returns why to stop, agreed on by all ranks, or ''. Raises
        Abandoned where that was so before the update was made."""
        if not self.readings:
            self.clock = time.perf_counter()
        loss, grad_norm = self.engine.update(step, self.urgent)
        wishes = self.world.send(as_numbers(self.urgent() or self.stop.asked()))
        numbers = torch.cat([loss.reshape(1), grad_norm.reshape(1), self.world.sum(wishes)])
        self.readings.append((step, self.engine.lr(step), Reading(numbers)))
        self.settle(0 if self.profile.turns else self.world.lag)
        self.profile.step(step)
        return self.reason

    def settle(self, unread: int = 0) -> None:
        """Read the numbers of all but the newest `unread` updates. Raises BadSteps."""
        while len(self.readings) > unread:
            step, lr, reading = self.readings.popleft()
            loss, grad_norm, *wishes = reading.get()
            seconds, self.clock = time.perf_counter() - self.clock, time.perf_counter()
            self.journal.update(step, loss, grad_norm, lr, seconds)
            self.reason = self.reason or agreed(wishes)
            if (count := self.journal.watch.bad_steps) >= self.config.train.max_bad_steps:
                raise BadSteps(step, count)
        self.saver.collect()

    def due(self, step: int) -> list[str]:
        """The evaluations that come after `step`, in their order."""
        config, last = self.config, step == self.config.steps
        assert isinstance(config.hellaswag_every, int)
        every = {"validate": config.eval_every, "hellaswag": config.hellaswag_every}
        every["sample"] = config.sample_every
        last_too = {"validate": last, "hellaswag": last and config.hellaswag_every > 0, "sample": last}
        return [name for name in every if last_too[name] or due(step, every[name])]

    def evaluate(self, step: int, names: list[str]) -> tuple[str, list[str]]:
        """Do these evaluations. Returns why to stop at once, agreed on by all ranks, or '', and what is left
        then."""
        left, reason = list(names), ""
        if not left:
            return reason, left
        self.settle()
        tokens = self.journal.tokens(step)
        with plain(self.model) as model:
            while left and not reason:
                try:
                    if left[0] == "validate":
                        self.validate(model, step)
                    elif left[0] == "hellaswag":
                        self.evaluator.hellaswag(model, step, tokens)
                    else:
                        self.evaluator.sample(model, step, tokens)
                    left.pop(0)
                except errors.Abandoned:
                    pass
                reason = agreed(self.world.sum(self.world.send(as_numbers(self.urgent()))).tolist())
        return reason, left

    def validate(self, model: Network, step: int) -> None:
        """Validation loss on the first tokens or, at the end, on all."""
        self.integrity.settle_validation()
        limit = self.config.val_tokens if step < self.config.steps else None
        self.last_val = self.evaluator.validate(model, step, self.journal.tokens(step), limit)
        self.val_loss = step, self.last_val["loss"]

    def save_due(self, step: int) -> bool:
        """Whether to save now: every so many steps. While updates do not happen it is put off, so that the
        newest checkpoint stays a good one."""
        self.save_owed = self.save_owed or due(step, self.config.save_every)
        if self.save_owed:
            self.settle()
        return self.save_owed and not self.journal.watch.bad_steps

    def save(self, step: int, owed: list[str]) -> None:
        """Begin to publish a checkpoint of this step; it is written while training goes on. Not where the
        data has changed meanwhile: the newest checkpoint stays one from before."""
        self.settle()
        self.save_owed = False
        if problem := self.integrity.look(now=True):
            raise ChangedData(problem, RESTORE)
        self.saver.save(self.model, self.engine.optimizer, self.state(step, owed))
        self.saved = step

    def state(self, step: int, owed: list[str]) -> State | None:
        """What a checkpoint of this step says beside its tensors; None but on the first rank."""
        if self.journal.records is None:
            return None
        records_bytes, records_sha256 = self.journal.mark(step, self.saver.lock)
        val_loss = self.val_loss[1] if self.val_loss[0] == step else math.nan
        return State(
            step=step,
            tokens=self.journal.tokens(step),
            seed=self.config.seed,
            data=self.start.data.fingerprint,
            records_bytes=records_bytes,
            val_loss=val_loss if math.isfinite(val_loss) else None,
            scaler=self.engine.scaler.state_dict(),
            skipped=[list(one) for one in self.batches.skipped],
            bad_steps=self.journal.watch.bad_steps,
            records_sha256=records_sha256,
            tokenizer=self.start.data.tokenizer.sha256,
            config=self.start.described,
            owed=owed,
        )

    def back_before(self, row: BadSteps) -> Start:
        """Where to go on after so many bad steps: at the newest checkpoint from before them, without their
        windows. Raises Failure where that has not helped."""
        first = row.step - row.count + 1
        self.saver.collect(wait=True)
        self.world.barrier()  # nobody writes, all look
        state, damaged = saved.newest_sound(self.run, usable=lambda state: not state.bad_steps)
        back = state.step if state else 0
        if self.start.gone_back and back == self.first:
            self.journal.event(row.step, "gave_up", {"steps": [first, row.step], "checkpoint": back})
            start_from = f"--init-from {shell_path(f'{self.run}@{back}')} " if back else ""
            raise errors.Failure(
                f"loss or gradient not finite in steps {first:,} to {row.step:,}, again after going back to "
                f"step {back:,} and leaving out the windows of the first time: giving up.",
                f"Try a lower learning rate in a new run: --run NAME {start_from}--optim.lr "
                f"{usual_lr(self.start.preset, self.config.optim.lr):g}",
            )
        skipped = self.batches.without(first - 1, row.step - 1)
        self.journal.gone_back(row.step, first, back, skipped)
        return self.start.back_to(state, damaged, skipped)

    def leave(self, step: int, reason: str, owed: list[str]) -> int:
        """Stop because of `reason`, with the last finished step saved."""
        self.settle()
        if reason == "changed":
            raise ChangedData(self.integrity.problem or "another rank found changed data.", RESTORE)
        if step not in (0, self.saved):
            self.save(step, owed)
        self.saver.make_sure()
        self.journal.left(step, "preempted" if reason == "time" else reason)
        return errors.INTERRUPTED if reason == "interrupted" else errors.SAVED

    def finish(self) -> int:
        """The last step is done, and everything after it."""
        compared, shards = self.integrity.settle_rest()
        if self.saved != self.config.steps:
            self.save(self.config.steps, [])
        self.saver.make_sure()
        self.journal.done(self.last_val, compared, shards)
        return errors.DONE


def initial_model(start: Start) -> Network:
    """The weights to begin with: a checkpoint's, those of --init-from, or random ones."""
    config, n_tokens = start.config.model, start.data.tokenizer.vocab_size
    model = build(config, n_tokens)
    if start.state is not None:
        checkpoint.load_weights(saved.folder(start.run, start.state.step), model)
    elif start.donor is not None:
        model.load_state_dict(start.donor.fit(config, n_tokens))
    else:
        model.init_weights(start.config.seed)
    return model
