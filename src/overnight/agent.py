"""torchrun, with a rank's death told in a line: what `train --processes` starts (launch.py).

python -m overnight.agent TORCHRUN_ARGUMENTS
"""

import logging
import signal
import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from overnight.errors import FAILURE, WRONG_INPUT


def main(arguments: list[str]) -> int:
    """Run the ranks; the exit code of the first that failed, where that is one of ours (errors.py)."""
    # Its warnings tell of every process that it ends; the one that died first is told below.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.ERROR)
    try:
        run.run(run.parse_args(arguments))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        print(f"overnight: {told(rank, failure)}", file=sys.stderr, flush=True)
        return failure.exitcode if failure.exitcode == WRONG_INPUT else FAILURE
    return 0


def told(rank: int, failure: ProcessFailure) -> str:
    """How a rank ended."""
    if failure.exitcode >= 0:
        return f"rank {rank} ended with exit code {failure.exitcode}, so the other ranks were ended."
    name = signal.Signals(-failure.exitcode).name
    why = " (the system does that when memory runs out)" if name == "SIGKILL" else ""
    return f"rank {rank} (process {failure.pid}) was killed by {name}{why}, so the other ranks were ended."


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
