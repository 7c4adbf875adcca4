"""What the operating system says of this machine. No torch here: `prepare` uses it too."""

import contextlib
import ctypes
import os
import platform
import signal
import sys
import threading
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def cpu_count() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    """The processor's model, as far as the system tells."""
    return cpu_field("model name") or platform.processor() or platform.machine()


def cpu_vendor() -> str:
    """Who made the processor ("GenuineIntel", "AuthenticAMD"); "" where the system does not tell."""
    return cpu_field("vendor_id")


def cpu_field(name: str) -> str:
    """A line of Linux's /proc/cpuinfo, "" where there is none."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith(name))
    except (OSError, StopIteration):
        return ""


def signal_name(number: int) -> str:
    """Name of a signal: "SIGKILL" for 9, "signal 37" for one without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def keep_memory() -> None:
    """Let the process keep what it frees, where its allocator is glibc's. By default a block of more than
    32 MB comes in fresh pages each time, and having them filled with zeros can take longer than what is
    computed there. After a few steps each finds the memory of the one before; the holes cost some more."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return  # another C library
    mallopt(M_MMAP_MAX, 0)  # nothing in mappings of its own
    mallopt(M_TRIM_THRESHOLD, -1)  # and nothing given back


def step_back() -> None:
    """Let this thread run where others leave processors idle. Linux alone has priorities of threads."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def peak_memory() -> int | None:
    """Bytes that this process has held at its most; None where the system does not tell (Windows)."""
    if sys.platform == "win32":
        return None
    with contextlib.suppress(OSError, StopIteration):  # Linux; what getrusage tells has the parent's in it
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


UNTOLD = 8 * 2**30  # bytes of memory to count on where the system does not tell


def memory() -> int | None:
    """Bytes of main memory that this process may use, with the limits of containers (cgroup v2) and of
    `ulimit -v`; None where the system does not tell (Windows)."""
    if not (hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names):
        return None
    import resource

    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    limits += [limit for limit in resource.getrlimit(resource.RLIMIT_AS)[:1] if limit > 0]
    with contextlib.suppress(OSError, ValueError):  # not there, or "max"
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits)
