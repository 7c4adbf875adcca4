"""The training step, and the loop around it."""

import math
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext

import torch
from torch import Tensor, nn

from overnight import __version__, checkpoint, errors, plan
from overnight.checkpoint import State
from overnight.data.batches import Batches, key
from overnight.data.loader import Loader
from overnight.evaluator import Evaluator
from overnight.files import clear_disk_errors
from overnight.models.gpt2 import GPT
from overnight.optim import adamw, learning_rate
from overnight.records import Records
from overnight.start import Start, begin
from overnight.stop import Stop
from overnight.terminal import Silent, Status, duration
from overnight.world import World, be_deterministic, peak_flops, use_precision

Autocast = Callable[[], AbstractContextManager]


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    micro_batches: Iterable[tuple[Tensor, Tensor]],
    micro_steps: int,
    lr: float,
    grad_clip: float,
    autocast: Autocast,
) -> tuple[Tensor, Tensor]:
    """One update from all of a step's micro-batches.

    Returns this rank's mean loss, and the norm of the gradient of all ranks before clipping: fp32 scalars
    on the device.
    """
    total = torch.zeros((), device=next(model.parameters()).device)
    for micro_step, (inputs, targets) in enumerate(micro_batches, 1):
        # Ranks exchange gradients in the last micro-step's backward pass only. DDP decides that in the
        # forward pass, so it has to be inside (build-nanogpt#30: 4.59 where 3.95 was right).
        with nullcontext() if micro_step == micro_steps else unsynchronised(model):
            with autocast():
                loss = model(inputs, targets) / micro_steps
            scaler.scale(loss).backward()
        total += loss.detach()
    scaler.unscale_(optimizer)
    grad_norm = nn.utils.clip_grad_norm_(model.parameters(), grad_clip or math.inf)
    for group in optimizer.param_groups:
        group["lr"] = lr
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return total, grad_norm


def unsynchronised(model: nn.Module) -> AbstractContextManager:
    """DDP's no_sync; nothing for a module without other ranks."""
    return getattr(model, "no_sync", nullcontext)()


def due(step: int, every: int) -> bool:
    """Whether something done every so many steps is done after `step` updates."""
    return every > 0 and step % every == 0


def train(start: Start, world: World) -> int:
    """Train from where `start` is to its last step. Returns the exit code (errors.py)."""
    status = Status() if world.is_main else Silent()
    if start.complete:
        assert start.state is not None
        status.say(f"{start.run} is complete ({start.state.step:,} steps): nothing to do.")
        return errors.DONE
    world.barrier()  # everybody has read the run's folder; from here on it changes
    with clear_disk_errors(f"training {start.run}"), ExitStack() as stack:
        if world.is_main:
            begin(start)
        session = Session(start, world, status, stack)
        return loop(session, stack.enter_context(Stop(start.config.max_minutes)))


def loop(session: "Session", stop: Stop) -> int:
    """Steps, and what is due after each. `step` counts updates done; update 1 is the first."""
    config = session.config
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
        if last or asked or due(step, config.save_every):
            session.save(step, val_loss)
        if asked and not last:
            return session.leave(step, asked)
    return session.finish()


class Session:
    """What one process holds while it trains: the model and all that acts on it."""

    def __init__(self, start: Start, world: World, status: Status, stack: ExitStack):
        config = start.config
        assert isinstance(config.micro_batch, int)
        self.micro_batch = config.micro_batch
        self.config, self.data, self.run, self.world, self.status = (
            config,
            start.data,
            start.run,
            world,
            status,
        )
        if config.deterministic:
            be_deterministic()
        self.autocast = use_precision(config.precision, world.device)
        self.model = initial_model(start).to(world.device)
        self.optimizer = adamw(self.model, config.optim)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=config.precision == "fp16")
        if start.state is not None:
            checkpoint.load_optimizer(
                checkpoint.folder(self.run, start.state.step), self.model, self.optimizer
            )
            self.scaler.load_state_dict(start.state.scaler)
        self.first = start.state.step if start.state else 0  # updates done before this process
        self.parallel = world.replicate(self.compiled())
        self.batches = Batches(
            self.data.split("train"),
            config.model.block_size,
            config.sequences,
            config.seed,
            config.loader.order,
        )
        self.loader = Loader(self.batches, self.micro_batch, world)
        stack.callback(self.loader.close)
        self.records = Records(self.run) if world.is_main else None
        if self.records:
            stack.callback(self.records.close)
        assert isinstance(config.hellaswag_every, int)
        self.hellaswag_every = config.hellaswag_every
        self.evaluator = Evaluator(
            self.model, config, self.data, start.questions, world, self.autocast, self.records, status
        )
        self.last_val: dict[str, float] = {}
        self.began = time.monotonic()
        peak = peak_flops(world.device, config.precision)
        self.peak = peak * world.size if peak else None
        self.announce(start)

    def announce(self, start: Start) -> None:
        """Say and record what begins here."""
        world = {
            "size": self.world.size,
            "device": str(self.world.device),
            "threads": torch.get_num_threads(),
        }
        detail = {"world": world, "auto": start.auto, "version": __version__}
        if start.resuming:
            detail |= {"changes": start.changes, "damaged": start.damaged}
            for problem in start.damaged:
                self.status.say(f"damaged checkpoint moved aside: {problem}")
            for name, (was, now) in start.changes.items():
                self.status.say(f"{name.replace('_', '-')}: {was} -> {now}")
        self.event(self.first, "resume" if start.resuming else "start", detail)
        if start.auto.get("hellaswag_every") == 0:
            self.status.say("HellaSwag is left out: its file could not be had (--hellaswag-file PATH).")
        config, ranks = self.config, f" on {self.world.size} ranks" if self.world.size > 1 else ""
        self.status.say(
            f"{'Resuming' if self.first else 'Training'} {self.run}"
            + (f" at step {self.first:,}" if self.first else "")
            + f": {plan.parameters(config.model) / 1e6:.1f} M parameters, {config.precision} on "
            f"{self.world.device}{ranks}, {config.steps:,} steps of {config.batch_tokens:,} tokens "
            f"({config.micro_batch} x {config.model.block_size} at a time)."
        )

    def compiled(self) -> nn.Module:
        """The model that training calls: compiled if the config says so and it works here, else the raw
        one. Evaluation and sampling always use the raw one, whose shapes may change."""
        if self.config.compile == "off":
            return self.model
        try:
            compiled: nn.Module = torch.compile(self.model)  # type: ignore[assignment]
            shape, device = (self.micro_batch, self.config.model.block_size), self.world.device
            with self.autocast():
                loss = compiled(*(torch.zeros(shape, dtype=torch.long, device=device) for _ in range(2)))
            loss.backward()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a compiler may throw: training works without one
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            self.status.say(f"torch.compile does not work here, training goes on without it ({reason}).")
            compiled = self.model
        self.model.zero_grad(set_to_none=True)
        return compiled

    def tokens(self, step: int) -> int:
        """Tokens trained on in the first `step` updates."""
        return self.batches.position(step) * self.config.model.block_size

    def update(self, step: int, stop: Stop) -> str:
        """Update number `step` (1 is the first). Returns why to stop, agreed on by all ranks, or ''."""
        began = time.perf_counter()
        config = self.config
        lr = learning_rate(step - 1, config.steps, config.optim)
        torch.manual_seed(key(config.seed, step, self.world.rank))  # dropout depends on these alone
        loss, grad_norm = train_step(
            self.parallel, self.optimizer, self.scaler, self.loader.at(step - 1),
            self.loader.micro_steps(step - 1), lr, config.optim.grad_clip, self.autocast,
        )  # fmt: skip
        asked = stop.asked()
        shared = [float(asked == "interrupted"), float(asked == "preempted")]
        shared_loss, interrupted, preempted = self.world.sum(
            torch.cat([loss.reshape(1), torch.tensor(shared, device=loss.device)])
        ).tolist()
        mean_loss = shared_loss / self.world.size
        seconds = time.perf_counter() - began
        rate = (self.tokens(step) - self.tokens(step - 1)) / seconds
        mfu = rate * plan.flops_per_token(config.model) / self.peak if self.peak else None
        if self.records:
            self.records.train(
                step, self.tokens(step), mean_loss, lr, grad_norm.item(), 1000 * seconds, rate, mfu
            )
        if step == 1 and not config.init_from:
            self.check_first_loss(mean_loss)
        self.status.update(lambda: self.progress(step, mean_loss, lr, rate))
        return "interrupted" if interrupted else "preempted" if preempted else ""

    def check_first_loss(self, loss: float) -> None:
        """A fresh model knows nothing: its loss is that of guessing evenly, ln(vocabulary), plus half the
        variance of its logits (0.02 times a vector of length sqrt(n_embd))."""
        expected = math.log(self.data.tokenizer.vocab_size)
        allowed = 0.1 + 0.5 * 0.02**2 * self.config.model.n_embd
        sane = abs(loss - expected) <= allowed
        self.event(0, "initial_loss", {"loss": loss, "ln_vocabulary": expected, "sane": sane})
        verdict = (
            "as it should be" if sane else f"NOT within {allowed:.2f}: something is wrong with the model"
        )
        self.status.say(f"Loss before training {loss:.4f}, ln(vocabulary) {expected:.4f}: {verdict}.")

    def validate(self, step: int, limit: int | None) -> float:
        """Validation loss on the first `limit` tokens, or on all."""
        self.last_val = self.evaluator.validate(step, self.tokens(step), limit)
        return self.last_val["loss"]

    def hellaswag(self, step: int) -> None:
        self.evaluator.hellaswag(step, self.tokens(step))

    def sample(self, step: int) -> None:
        self.evaluator.sample(step, self.tokens(step))

    def save(self, step: int, val_loss: float | None) -> None:
        """Publish a checkpoint of this step and remove old ones; the first rank has all there is to save."""
        if self.records is None:
            return
        state = State(
            step=step,
            tokens=self.tokens(step),
            seed=self.config.seed,
            data=self.data.fingerprint,
            records_bytes=self.records.synced_size(),
            val_loss=val_loss if val_loss is None or math.isfinite(val_loss) else None,
            scaler=self.scaler.state_dict(),
            sha256={},
        )
        path = checkpoint.publish(self.run, self.model, self.optimizer, state)
        checkpoint.prune(self.run, self.config.keep)
        self.event(step, "checkpoint", {"path": path.name})

    def leave(self, step: int, reason: str) -> int:
        """Stopped from outside, with everything saved."""
        self.event(step, reason, {})
        self.status.say(f"{reason.capitalize()}: saved step {step:,}. Run the same command again to go on.")
        return errors.INTERRUPTED if reason == "interrupted" else errors.SAVED

    def finish(self) -> int:
        """The last step is done and saved."""
        self.event(self.config.steps, "done", self.last_val)
        self.status.say(
            f"Done: {self.config.steps:,} steps, {duration(time.monotonic() - self.began)} in this process. "
            f"Now: overnight eval {self.run}, overnight sample {self.run}"
        )
        return errors.DONE

    def event(self, step: int, name: str, detail: dict) -> None:
        if self.records:
            self.records.event(step, self.tokens(step), name, detail)

    def progress(self, step: int, loss: float, lr: float, rate: float) -> str:
        per_step = (time.monotonic() - self.began) / (step - self.first)
        left = duration(per_step * (self.config.steps - step))
        steps = f"step {step:,}/{self.config.steps:,}"
        return f"{steps}  loss {loss:.4f}  lr {lr:.2e}  {rate:,.0f} tokens/s  {left} left"


def initial_model(start: Start) -> GPT:
    """The weights to begin with: a checkpoint's, those of --init-from, or random ones."""
    config, n_tokens = start.config.model, start.data.tokenizer.vocab_size
    model = GPT(config, n_tokens)
    if start.state is not None:
        checkpoint.load_weights(checkpoint.folder(start.run, start.state.step), model)
    elif start.donor is not None:
        model.load_state_dict(start.donor.fit(config, n_tokens))
    else:
        model.init_weights(start.config.seed)
    return model
