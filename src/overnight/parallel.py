"""One model on many ranks: replicated (DDP), or sharded for models beyond one card's memory (FSDP2).

Sharded, a rank holds its part of every parameter, gradient and moment; a block's parameters are whole only
while it computes, and its activations are computed again in the backward pass instead of being kept.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from overnight.config import Config
from overnight.models.gpt2 import GPT, Linear
from overnight.models.networks import Network, build
from overnight.world import World

Autocast = Callable[[], contextlib.AbstractContextManager]


def spread(
    model: Network, config: Config, world: World, autocast: Autocast, say: Callable[[str], None]
) -> nn.Module:
    """The module that training calls: the model on its device, compiled if the config says so and it works
    here, together with the other ranks."""
    if config.parallel == "fsdp":
        return shard(model, world, config.compile == "on")
    model.to(world.device)
    module: Network | CastOnce = model
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.precision)
    # With other ranks the casts stay inside: torch.compile cuts its graph at the weights of DDP's buckets,
    # so that their gradients travel during the backward pass, and has to see them for that.
    if half and config.train.cast == "step" and world.size == 1:
        module = CastOnce(model, half)
    together = replicate(module, world)
    if config.compile == "on":
        compile_for(together, module, config, world, autocast, say)
    return together


class CastOnce(nn.Module):
    """A model whose matrices are kept in bf16 or fp16 beside the fp32 weights, cast once a step (`refresh`)
    and not in every micro-step. Gradients reach the fp32 weights, and add up there, in fp32."""

    def __init__(self, model: Network, dtype: torch.dtype):
        super().__init__()
        self.model = model
        self.names = [f"{name}.weight" for name, part in model.named_modules() if isinstance(part, Linear)]
        # GPT-2's token embedding in its use as the head; looked up, it stays fp32.
        head = ["wte.weight"] if isinstance(model, GPT) else []
        self.weights = [model.get_parameter(name) for name in (*self.names, *head)]
        self.copies = [weight.detach().to(dtype) for weight in self.weights]

    @torch.no_grad()
    def refresh(self) -> None:
        """The weights have changed."""
        torch._foreach_copy_(self.copies, list[Tensor](self.weights))

    def forward(self, idx: Tensor, targets: Tensor) -> Tensor:
        return self.compute(list(map(Cast.apply, self.weights, self.copies)), idx, targets)

    def compute(self, cast: list[Tensor], idx: Tensor, targets: Tensor) -> Tensor:
        """The loss with these in place of the model's own: what is compiled."""
        matrices, head = cast[: len(self.names)], cast[len(self.names) :]
        inputs = (idx, targets, *head)
        return torch.func.functional_call(self.model, dict(zip(self.names, matrices, strict=True)), inputs)


class Cast(torch.autograd.Function):
    """What `weight.to(dtype)` is, whose result is there already."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, copy: Tensor) -> Tensor:
        return copy.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.float(), None


def compile_for(
    together: nn.Module, module: Network | CastOnce, config: Config, world: World, autocast: Autocast,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Compile what the module computes, for the one shape of training: one graph of model and loss. It is
    tried at once, `together` with the other ranks, and taken back where that fails. Evaluation and sampling
    call other methods, in other shapes, which stay as they are."""
    name = "compute" if isinstance(module, CastOnce) else "forward"
    try:
        setattr(module, name, torch.compile(getattr(module, name), fullgraph=True, dynamic=False))
        assert isinstance(config.micro_batch, int)
        shape = config.micro_batch, config.model.block_size
        # Two tensors: what is compiled for one that is given twice is compiled again for two.
        inputs, targets = (torch.zeros(shape, dtype=torch.long, device=world.device) for _ in range(2))
        with autocast():
            loss = together(inputs, targets)
        loss.backward()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a compiler may throw: training works without one
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        say(f"torch.compile does not work here, training goes on without it ({reason}).")
        vars(module).pop(name, None)  # it hid the class's own method
    module.zero_grad(set_to_none=True)


def replicate(model: nn.Module, world: World) -> nn.Module:
    """A module whose backward pass averages gradients over ranks (DDP); alone, the module itself."""
    if world.size == 1:
        return model
    ids = [world.device.index] if world.device.type == "cuda" else None
    with warnings.catch_warnings():
        # torch 2.13 has another name for broadcast_buffers, which 2.11 does not know.
        warnings.simplefilter("ignore", FutureWarning)
        return nn.parallel.DistributedDataParallel(
            model, device_ids=ids, gradient_as_bucket_view=True, broadcast_buffers=False
        )


def shard(model: Network, world: World, compiled: bool) -> Network:
    """The model itself, its parameters DTensors from now on. They come whole, on any device, and equal on
    all ranks; the optimizer is made afterwards."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.utils.checkpoint import checkpoint

    mesh = init_device_mesh(world.device.type, (world.size,))
    for block in model.h:
        forward = partial(checkpoint, block.forward, use_reentrant=False)
        # Only what the block computes is compiled: FSDP's hooks stay around it.
        block.forward = torch.compile(forward) if compiled else forward
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)  # what is around the blocks
    for part in (*model.h, model):
        # gloo has no trustworthy mean: sum, then divide.
        part.set_force_sum_reduction_for_comms(world.device.type == "cpu")
    return model


@contextlib.contextmanager
def unsynchronised(model: nn.Module) -> Iterator[None]:
    """Backward passes in here keep their gradients to this rank."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        with model.no_sync():  # it wants the forward pass in here as well
            yield
    elif is_sharded(model):
        model.set_requires_gradient_sync(False)  # type: ignore[operator]
        yield
        model.set_requires_gradient_sync(True)  # type: ignore[operator]
    else:
        yield


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` was called on it."""
    return hasattr(model, "set_requires_gradient_sync")


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, which every rank has to ask for where it is sharded."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def as_placed(tensor: Tensor, parameter: Any) -> Tensor:
    """A whole tensor, equal on all ranks, in memory of its own as `parameter` lies: on its device, and of a
    sharded one this rank's part."""
    if not hasattr(parameter, "full_tensor") or tensor.dim() == 0:
        return torch.empty_like(tensor, device=parameter.device).copy_(tensor)
    # Cloned: a part may be a view that keeps the whole alive.
    return part_of(tensor.to(parameter.device), parameter).clone()


def part_of(tensor: Tensor, parameter: Any) -> Tensor:
    """Of a whole tensor, equal on all ranks, the part that this rank has of `parameter`: where that is not
    sharded, all."""
    if not hasattr(parameter, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)


@contextlib.contextmanager
def plain(model: Network) -> Iterator[Network]:
    """The model for evaluation and sampling, which any rank may call alone, in any shape: itself or, of a
    sharded one, a whole copy, for as long as the `with` lasts."""
    if not is_sharded(model):
        yield model
        return
    copy = build(model.config, model.n_tokens).to(model.wte.weight.device)
    with torch.no_grad():
        for ours, sharded in zip(copy.parameters(), model.parameters(), strict=True):
            ours.copy_(whole(sharded))
    yield copy
