"""Muon (Jordan et al., 2024): the direction that momentum has found, with all its singular values made equal.

A gradient matrix is nearly of low rank: a few directions are large, and the many small ones would be learnt
last. Orthogonalised, U S V' -> U V', all of them count alike. That is for the matrices inside of a network;
embeddings, the head and all that is no matrix are AdamW's.

From the small to the large: `orthogonalise`, `shared_out` over ranks, the optimizer `Muon`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from overnight.parallel import part_of, whole
from overnight.world import World

# Polynomials a X + b XX'X + c XX'XX'X, one after the other. Each brings an interval of singular values as
# near to 1 as a quintic can, the first [0.001, 1], the next what that has left, and so on (Polar Express,
# Amsel et al., 2025), with room for bf16's rounding, 2% above each interval. They end between 0.86 and 1.14.
POLYNOMIALS = [
    (8.1603, -22.5091, 15.9003),
    (4.0457, -2.8128, 0.5008),
    (3.8978, -2.7789, 0.5074),
    (3.3008, -2.3849, 0.4683),
    (2.3172, -1.6373, 0.3920),
]


def orthogonalise(batch: Tensor) -> Tensor:
    """About the nearest matrices with orthonormal rows or columns: (n, rows, columns) -> the same, in bf16
    on CUDA and in fp32 elsewhere.

    Newton and Schulz: an odd polynomial of a matrix acts on its singular values and leaves the vectors.
    """
    tall = batch.size(-2) > batch.size(-1)
    x = batch.mT if tall else batch  # the shorter side first: X X' is the smaller product
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)  # no singular value above 1
    x = x.bfloat16() if x.is_cuda else x
    for a, b, c in POLYNOMIALS:
        xx = x @ x.mT
        polynomial = torch.baddbmm(xx, xx, xx, beta=b, alpha=c)  # b XX' + c XX'XX'
        x = torch.baddbmm(x, polynomial, x, beta=a)  # a X + (b XX' + c XX'XX') X
    return x.mT if tall else x


def shared_out(work: Callable[[Tensor], Tensor], batch: Tensor, world: World) -> Tensor:
    """work(batch), of which each rank does its share: (n, ...) -> (n, ...), the same on all of them."""
    each = -(-len(batch) // world.size)
    mine = batch[world.rank * each :][:each]
    if len(mine) < each:  # the last ranks may have less to do, but as much to send
        mine = torch.cat([mine, batch[:1].expand(each - len(mine), *batch.shape[1:])])
    return world.gather(work(mine))[: len(batch)]


class Muon(torch.optim.Optimizer):
    """Muon for `matrices`, and an AdamW of its own for the rest, whose groups and state are among this one's.

    matrices: by the shape of the single matrix; a parameter may hold several, one below the other, as the
    (3 C, C) of queries, keys and values does. momentum stands in their groups and may change from step to
    step. As AdamW's fused kernel does, `step` divides gradients by `grad_scale` and leaves everything as it
    is where `found_inf` is 1, without a look from the host.
    """

    def __init__(
        self, matrices: dict[tuple[int, int], list[nn.Parameter]], adamw: torch.optim.AdamW, lr: float,
        momentum: float, weight_decay: float, world: World,
    ):  # fmt: skip
        groups = [{"params": parameters, "shape": shape} for shape, parameters in matrices.items()]
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(groups, defaults | {"fused": adamw.defaults["fused"]})
        self.adamw, self.world, self.matrices = adamw, world, list(self.param_groups)
        self.param_groups += adamw.param_groups
        adamw.state = self.state

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        excess, bad = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        if excess is not None:
            self.adamw.grad_scale, self.adamw.found_inf = excess, bad  # type: ignore[attr-defined]
        self.adamw.step()
        for group in self.matrices:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self.update(parameters, group, excess, bad)

    def update(
        self, parameters: list[Any], group: dict[str, Any], excess: Tensor | None, bad: Tensor | None
    ) -> None:
        """One step of matrices of one shape."""
        rows, columns = group["shape"]
        found = [
            self.direction(p, group["momentum"], excess, bad).view(-1, rows, columns) for p in parameters
        ]
        updates = shared_out(orthogonalise, torch.cat(found), self.world).float()  # (n, rows, columns)
        lr = group["lr"] if bad is None else group["lr"] * (1.0 - bad)
        updates *= lr * max(1.0, rows / columns) ** 0.5
        for p, update in zip(parameters, updates.split([len(one) for one in found]), strict=True):
            p.mul_(1.0 - lr * group["weight_decay"]).sub_(part_of(update.reshape(p.shape), p))

    def direction(self, p: Any, momentum: float, excess: Tensor | None, bad: Tensor | None) -> Tensor:
        """Nesterov's momentum with this step's gradient: whole, of a parameter that is sharded too."""
        state = self.state[p]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(p)
        buffer, gradient = state["momentum_buffer"], p.grad
        if excess is not None and bad is not None:
            gradient = torch.where(bad.bool(), buffer, gradient / excess)  # as if it had brought nothing new
        buffer.lerp_(gradient, 1.0 - momentum)
        return whole(gradient.lerp(buffer, momentum))
