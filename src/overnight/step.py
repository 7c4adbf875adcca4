"""The training step, and the engine that makes it: in a run, in the ladder, in a profile."""

import contextlib
import gc
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from overnight.config import Config
from overnight.data.batches import Batches, key
from overnight.data.loader import Loader
from overnight.errors import Abandoned
from overnight.models import attention, linear
from overnight.models.networks import Network
from overnight.optim import learning_rate, momentum, optimizer
from overnight.parallel import CastOnce, spread, unsynchronised, whole
from overnight.stop import agreed, as_numbers
from overnight.world import World, be_deterministic, use_precision

Autocast = Callable[[], AbstractContextManager]
MicroBatch = tuple[Tensor, Tensor]


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    micro_batches: Iterable[MicroBatch],
    micro_steps: int,
    lr: float,
    grad_clip: float,
    autocast: Autocast,
    mean: Callable[[Tensor], Tensor] = lambda loss: loss,
) -> tuple[Tensor, Tensor]:
    """One update from all of a step's micro-batches; none where loss or gradient is not finite.

    mean: this rank's loss -> that of all ranks. Returns the latter, and the norm of the gradient of all ranks
    before clipping: fp32 scalars on the device, which the host has not waited for.
    """
    loss = torch.zeros((), device=optimizer.param_groups[0]["params"][0].device)
    for micro_step, (inputs, targets) in enumerate(micro_batches, 1):
        # Ranks exchange gradients in the last micro-step's backward pass only. DDP decides that in the
        # forward pass, so it has to be inside (build-nanogpt#30: 4.59 where 3.95 was right).
        with nullcontext() if micro_step == micro_steps else unsynchronised(model):
            with autocast():
                part = model(inputs, targets) / micro_steps
            scaler.scale(part).backward()
        loss += part.detach()
    loss = mean(loss)
    with record_function("optimizer"):
        return loss, apply(optimizer, scaler, loss, lr, grad_clip)


def apply(
    optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, loss: Tensor, lr: float, grad_clip: float
) -> Tensor:
    """Update the weights, unless their gradients or the loss are not finite; the norm of the gradients."""
    scaler.unscale_(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    grad_norm = whole(nn.utils.get_total_norm([p.grad for p in parameters]))
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("ratio", 1.0)
    bad = 1.0 - torch.isfinite(loss + grad_norm).float()
    if optimizer.defaults["fused"] and bad.device.type != "mps":
        # The kernel divides gradients by the one, so that clipping them is no work of its own, and leaves
        # weights and moments as they are where the other is 1, so that the host does not have to look.
        excess = ((grad_norm + 1e-6) / (grad_clip or math.inf)).clamp(min=1.0)  # as clip_grad_norm_ has it
        optimizer.grad_scale, optimizer.found_inf = excess, bad  # type: ignore[attr-defined]
        optimizer.step()
    elif not bad:
        nn.utils.clip_grads_with_norm_(parameters, grad_clip or math.inf, grad_norm)
        optimizer.step()
    if scaler.is_enabled():  # of shards a rank has seen its own only, but all have to scale alike
        for found in scaler._found_inf_per_device(optimizer).values():
            found.copy_(bad)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return grad_norm


def seed_all(seed: int, device: torch.device) -> None:
    """torch.manual_seed, which without a GPU takes a tenth of a millisecond: it writes down who called."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


class Engine:
    """A model and all that acts on it, on one rank."""

    def __init__(
        self, model: Network, config: Config, batches: Batches, world: World, say: Callable[[str], None]
    ):
        assert isinstance(config.micro_batch, int)
        linear.use(config.train.products)
        if config.deterministic:
            be_deterministic()
        self.config, self.world = config, world
        self.stack = ExitStack()
        self.autocast = use_precision(config.precision, world.device)
        self.kernel = self.stack.enter_context(attention.fastest(config, world.device))
        self.module = spread(model, config, world, self.autocast, say)
        self.optimizer = optimizer(model, config.optim, world)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=config.precision == "fp16")
        if isinstance(self.module, CastOnce):
            refresh = self.module.refresh
            self.optimizer.register_step_post_hook(lambda *_: refresh())
        self.loader = Loader(batches, config.micro_batch, world)
        self.stack.callback(self.loader.close)

    def lr(self, step: int) -> float:
        """The learning rate of update `step` (1 is the first)."""
        return learning_rate(step - 1, self.config.steps, self.config.optim)

    def update(self, step: int, asked: Callable[[], str] = lambda: "") -> tuple[Tensor, Tensor]:
        """Update number `step`: its loss and gradient norm, as `train_step` returns them. Raises Abandoned,
        with weights and optimizer as after the step before, where `asked` names a reason to stop between two
        micro-batches."""
        seed_all(key(self.config.seed, step, self.world.rank), self.world.device)  # all that dropout needs
        for group in self.optimizer.param_groups:
            if "momentum" in group:
                group["momentum"] = momentum(step - 1, self.config.optim)
        micro_steps = self.loader.micro_steps(step - 1)
        micro_batches = self.until_asked(self.loader.at(step - 1), micro_steps, asked)
        try:
            with record_function("step"):
                return train_step(
                    self.module, self.optimizer, self.scaler, micro_batches, micro_steps, self.lr(step),
                    self.config.optim.grad_clip, self.autocast, self.world.mean,
                )  # fmt: skip
        except Abandoned:
            self.optimizer.zero_grad(set_to_none=True)
            raise

    def until_asked(
        self, micro_batches: Iterable[MicroBatch], count: int, asked: Callable[[], str]
    ) -> Iterator[MicroBatch]:
        """The micro-batches of a step, until there is a reason to stop.

        Ranks agree on it once a step, before the last micro-batch, in which they exchange gradients: one that
        is asked earlier goes there and waits for the others (not where the model is sharded: then they
        exchange parameters in each). Several GPUs, which would have to wait for the host, finish their step.
        """
        together, sharded = self.world.size > 1, self.config.parallel == "fsdp"
        for number, micro_batch in enumerate(micro_batches, 1):
            if number > 1 and not (together and self.world.device.type != "cpu"):
                reason = asked()
                if together:
                    meet = number == count or (reason and not sharded)
                    reason = agreed(self.world.sum(torch.tensor(as_numbers(reason))).tolist()) if meet else ""
                if reason:
                    raise Abandoned(reason)
            yield micro_batch

    def close(self) -> None:
        self.stack.close()


@contextlib.contextmanager
def frozen_garbage() -> Iterator[None]:
    """In here Python's garbage collector leaves alone what was there before: looking through all of torch
    takes a tenth of a second each time, and finds nothing."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
