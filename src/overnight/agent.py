"""torchrun, with a rank's death told in a line: what `train --processes` starts (launch.py).

python -m overnight.agent TORCHRUN_ARGUMENTS
"""

import logging
import signal
import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from overnight.errors import DONE, FAILURE, SAVED, WRONG_INPUT
from overnight.terminal import complain


def main(arguments: list[str]) -> int:
    """Run the ranks; the exit code of the first that failed, where that is one of ours (errors.py)."""
    # Its warnings tell of every process that it ends; the one that died first is told below.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.ERROR)
    try:
        run.run(run.parse_args(arguments))
    except ChildFailedError as error:
        # Of several that were found at once, one that was killed is the cause, not the others' complaints.
        rank, failure = min(error.failures.items(), key=lambda one: (one[1].exitcode >= 0, one[1].timestamp))
        complain(f"overnight: {told(rank, failure)}")
        return failure.exitcode if failure.exitcode == WRONG_INPUT else FAILURE
    except SignalException:  # passed on to the ranks, which have saved or were given half a minute to
        return SAVED
    return DONE


def told(rank: int, failure: ProcessFailure) -> str:
    """How a rank ended."""
    if failure.exitcode >= 0:
        return f"rank {rank} ended with exit code {failure.exitcode}, so the other ranks were ended."
    name = signal.Signals(-failure.exitcode).name
    why = " (the system does that when memory runs out)" if name == "SIGKILL" else ""
    return f"rank {rank} (process {failure.pid}) was killed by {name}{why}, so the other ranks were ended."


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
