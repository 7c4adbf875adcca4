"""Where a run computes: device, precision, compilation, and the ranks it shares the work with.

Alone, every collective is a no-op, so that nothing else asks how many ranks there are.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from overnight import hardware, interfaces, machine, meeting
from overnight.errors import LostRank, UserError
from overnight.heartbeat import SILENCE, heartbeat
from overnight.machine import cpu_count
from overnight.private import use_private_folders
from overnight.stop import is_rank
from overnight.terminal import complain


@dataclass(frozen=True)
class World:
    """This process among `size` ranks. torchrun says which one it is; without it there is one."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this rank speaks, records and saves for all."""
        return self.rank == 0

    @property
    def first_on_host(self) -> bool:
        """Whether this rank does what is to be done once per machine."""
        return self.size == 1 or os.environ.get("LOCAL_RANK", "0") == "0"

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all ranks, on each of them; in place. (gloo has no trustworthy mean:
        divide afterwards.)"""
        if self.size > 1:
            dist.all_reduce(values, op=dist.ReduceOp.SUM)
        return values

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            dist.barrier(device_ids=[self.device.index] if self.device.type == "cuda" else None)

    def mean(self, values: Tensor) -> Tensor:
        """The mean of a tensor over all ranks, on each of them."""
        return self.sum(values) / self.size

    def gather(self, part: Tensor) -> Tensor:
        """The parts of all ranks, of one shape, behind one another: (n, ...) -> (size n, ...)."""
        if self.size == 1:
            return part
        part = part.contiguous()
        found = [torch.empty_like(part) for _ in range(self.size)]
        dist.all_gather(found, part)
        return torch.cat(found)

    def agrees(self, number: int) -> bool:
        """Whether all ranks have the same number."""
        first, second = self.sum(torch.tensor([number, number * number], device=self.device)).tolist()
        return first == number * self.size and second == number * number * self.size

    def any(self, here: bool) -> bool:
        """Whether something holds on at least one rank; each of them has to ask."""
        return bool(self.sum(torch.tensor(float(here), device=self.device)).item())

    def send(self, numbers: list[float]) -> Tensor:
        """Numbers on their way to the device, (n,) fp32; nobody waits for it."""
        cuda = self.device.type == "cuda"
        here = torch.tensor(numbers, dtype=torch.float32, pin_memory=cuda)
        return here.to(self.device, non_blocking=True)

    @property
    def lag(self) -> int:
        """Steps that numbers are read late: a GPU shall be busy with the next step by then."""
        return 1 if self.device.type == "cuda" else 0


class Reading:
    """Numbers, (n,), that the device has yet to compute: they are copied behind the work it has so far, and
    reading them later does not stop what it was given since."""

    def __init__(self, values: Tensor):
        self._host = values
        self._copied = None
        if values.is_cuda:
            self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def get(self) -> list[float]:
        """The numbers, as soon as they are there."""
        if self._copied:
            self._copied.synchronize()
        return self._host.tolist()


@contextlib.contextmanager
def connect(device: str, always: bool = False) -> Iterator[World]:
    """The world of this process: joins the other ranks if torchrun started it, and leaves them at the end.
    always: make a process group even for one that is alone (FSDP wants one)."""
    rank, local_rank = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    size = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = choose_device(device, local_rank, size)
    use_private_folders()
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    elif chosen.type == "cpu":
        machine.keep_memory()
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if local_size == size:
        interfaces.listen_only_here()
    threads = os.environ.get("OMP_NUM_THREADS", "")
    with flushed_denormals():  # before there are other threads, which inherit it
        torch.set_num_threads(
            int(threads) if threads.strip("0").isdecimal() else max(1, cpu_count() // local_size)
        )
        with joined(chosen, rank, size, always) as here:
            yield here


@contextlib.contextmanager
def flushed_denormals() -> Iterator[None]:
    """In here numbers too small for fp32's full precision are 0: moments of rows without a gradient fade
    through them, and processors compute with them a hundred times slower."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@contextlib.contextmanager
def joined(device: torch.device, rank: int, size: int, always: bool) -> Iterator[World]:
    """The world of this process, with a process group where there are others (or always)."""
    if size == 1 and not always:
        yield World(device)
        return
    backend, device_id = ("nccl", device) if device.type == "cuda" else ("gloo", None)
    if size == 1:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, device_id=device_id)
        yield World(device)
        dist.destroy_process_group()
        return
    with clear_rank_errors():
        if meeting.is_known():
            store = meeting.store()
            with interfaces.closed_afterwards():
                dist.init_process_group(backend, store=store, rank=rank, world_size=size, device_id=device_id)
        else:
            warn_of_torchrun(rank)
            dist.init_process_group(backend, device_id=device_id)
        try:
            with heartbeat(rank, *meeting.beats(rank, size, timedelta(seconds=SILENCE))):
                here = World(device, rank, size)
                yield here
                here.barrier()  # nobody hangs up while another is still saving
        finally:
            dist.destroy_process_group()


def warn_of_torchrun(rank: int) -> None:
    """Say on the first rank that torchrun's rendezvous is not safe where others reach its port."""
    if is_rank() and rank == 0:
        complain(
            "torchrun's rendezvous runs code for whoever reaches its port; `train --processes N` and "
            "`python -m overnight.agent` do not (docs/reproduce.md)."
        )


@contextlib.contextmanager
def clear_rank_errors() -> Iterator[None]:
    """Turn a connection that broke because another rank is gone into a line. (Which one it was is told by
    torchrun, who saw it end.)"""
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or re.search("(?i)gloo|nccl|closed by peer", str(error))):
            raise
        text = " ".join(str(error).split())[:300]
        raise LostRank(f"the other ranks cannot be reached, so this one ends ({text}).") from error


def imagine(device: str, processes: int) -> World:
    """The world as the first of `processes` ranks will find it: what can be checked before they start is
    checked in it. Touches no device."""
    choose_device(device, processes - 1, processes)  # the last rank's
    return World(choose_device(device, 0, processes), size=processes)


def choose_device(name: str, local_rank: int = 0, ranks: int = 1) -> torch.device:
    """'auto' finds cuda, then mps, then cpu; a named device that is not there is refused. (No backend
    connects ranks on mps.)"""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available() and ranks == 1,
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    if not available[name]:
        have = " and ".join(kind for kind, here in available.items() if here)
        raise UserError(f"there is no {name} device here: give --device auto, or one of {have}.")
    if name != "cuda":
        return torch.device(name)
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"{local_rank + 1} processes, but {torch.cuda.device_count()} GPUs: give fewer --processes."
        )
    return torch.device("cuda", local_rank)


def choose_precision(name: str, device: torch.device) -> str:
    """'auto' takes bf16, then fp16, where a GPU computes it in hardware, and fp32 elsewhere."""
    if name != "auto":
        if name == "tf32" and device.type != "cuda":
            raise UserError(
                f"precision tf32 is a mode of CUDA's matrix units, not of {device.type}: give fp32."
            )
        return name
    if device.type != "cuda":
        return "fp32"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16"
    # Tensor cores for fp16 came with compute capability 7.0 (Volta).
    return "fp16" if torch.cuda.get_device_capability(device) >= (7, 0) else "fp32"


def use_precision(precision: str, device: torch.device) -> Callable[[], contextlib.AbstractContextManager]:
    """Set the process up for `precision`; a function that makes the context for forward passes.

    Weights, gradients and optimizer state stay fp32: bf16 and fp16 are autocast's. All but fp32 let fp32
    matrix products that remain use TF32.
    """
    torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    if dtype is None:
        return contextlib.nullcontext
    return lambda: torch.autocast(device.type, dtype)


def peak_flops(device: torch.device, precision: str) -> float | None:
    """The device's peak for `precision` in FLOP/s; None where it is not known."""
    if device.type != "cuda":
        return None
    return hardware.peak(torch.cuda.get_device_name(device), precision)


def device_memory(device: torch.device, ranks_here: int) -> int:
    """Bytes that one rank can count on."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return (machine.memory() or machine.UNTOLD) // ranks_here


def choose_compile(name: str, device: torch.device) -> str:
    """'auto': "on" for CUDA with Triton. (On a CPU it is a matter of the run: compiling.py.)"""
    if name != "auto":
        return name
    return "on" if device.type == "cuda" and triton_works(device) else "off"


def triton_works(device: torch.device) -> bool:
    """Whether Triton is installed and supports this GPU (compute capability 7.0 and up)."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return torch.cuda.get_device_capability(device) >= (7, 0)


def be_deterministic() -> None:
    """Only kernels that give the same bits each time, on CUDA too; the CPU's do so anyway."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # Filling memory that nobody reads finds errors, and costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
