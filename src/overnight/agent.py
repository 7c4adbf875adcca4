"""torchrun with a rendezvous that loads no pickles (rendezvous.py), and a rank's death reported in one line.

python -m overnight.agent TORCHRUN_ARGUMENTS

`train --processes N` starts it (launch.py). On several machines it is started on each:

python -m overnight.agent --nnodes 2 --node-rank 0 --nproc-per-node 8 --rdzv-endpoint NODE0:29500 \
    -m -- overnight train PRESET
"""

import argparse
import contextlib
import logging
import os
import signal
import sys
from pathlib import Path

from torch.distributed import DistError, run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousError, rendezvous_handler_registry
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

from overnight import interfaces, rendezvous
from overnight.errors import DONE, FAILURE, INTERRUPTED, SAVED, WRONG_INPUT, UserError
from overnight.files import disk_problem, reason
from overnight.launcher_folder import launcher_folder
from overnight.machine import signal_name
from overnight.rendezvous import BACKEND, OneMachine, Rendezvous, SeveralMachines, Team
from overnight.stop import STOP_FOLDER, signals
from overnight.terminal import complain

PORT = 29500
PATIENCE = 600.0  # seconds to wait for the other nodes, as torchrun does
SAVING = 600  # seconds that ranks have after a signal


def main(arguments: list[str]) -> int:
    """Run the ranks; the exit code of the first that failed, where that is one of ours (errors.py)."""
    # Its warnings tell of every process that it ends; the one that died first is told below.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.ERROR)
    for name in ("agent.server.api", "multiprocessing.api"):
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    logging.getLogger("torch.distributed.run").setLevel(logging.ERROR)
    try:
        if hasattr(signal, "pthread_sigmask"):  # our launcher has blocked them while this module was imported
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals())
        with contextlib.ExitStack() as stack:
            options = parse(arguments)
            if STOP_FOLDER in os.environ:
                folder = Path(os.environ[STOP_FOLDER])
            else:
                folder = stack.enter_context(launcher_folder(lambda folder: None))
            set_up(options, folder)
            run.run(options)
    except ChildFailedError as error:
        # Of several that were found at once, one that was killed is the cause, not the others' complaints.
        rank, failure = min(error.failures.items(), key=lambda one: (one[1].exitcode >= 0, one[1].timestamp))
        complain(f"overnight: {told(rank, failure)}")
        return failure.exitcode if failure.exitcode == WRONG_INPUT else FAILURE
    except SignalException:  # passed on to the ranks, which have saved or were given time to
        return SAVED
    except (RendezvousError, DistError) as error:
        complain(f"overnight: the nodes did not come together ({reason(error)}).")
        return FAILURE
    except KeyboardInterrupt:  # before there were ranks
        return INTERRUPTED
    except OSError as error:  # the folder where the ranks meet is gone, or its disk is full
        complain(f"overnight: {disk_problem(error)}.")
        return FAILURE
    except UserError as error:
        complain(f"overnight: {error}")
        return error.code
    return DONE


def parse(arguments: list[str]) -> argparse.Namespace:
    """torchrun's options, and ours. Raises UserError for those by which pickles would travel."""
    parser = run.get_args_parser()
    parser.prog = "python -m overnight.agent"
    parser.add_argument("--interface", help="Network interface on which the ranks listen.")
    wait = "Seconds to wait for the other nodes, at the start and for one that is started again."
    parser.add_argument("--join-timeout", type=float, default=PATIENCE, help=wait)
    if "PET_NODE_RANK" not in os.environ:
        parser.set_defaults(node_rank=int(os.environ.get("SLURM_NODEID", "0")))
    if "PET_NNODES" not in os.environ:
        parser.set_defaults(nnodes="1")
    options = parser.parse_args(arguments)
    if options.rdzv_backend not in (BACKEND, parser.get_default("rdzv_backend")):
        raise UserError(
            f"--rdzv-backend {options.rdzv_backend} loads pickles from the network: leave the option out."
        )
    if not options.nnodes.isdecimal() or int(options.nnodes) < 1:
        raise UserError(f"--nnodes is a fixed number of machines here, not {options.nnodes}.")
    return options


def set_up(options: argparse.Namespace, folder: Path) -> None:
    """Replace torchrun's rendezvous by ours, and its folder of logs in the temporary directory by none."""
    handler = several(options) if int(options.nnodes) > 1 else OneMachine(options.rdzv_id, folder)
    rendezvous_handler_registry.register(BACKEND, lambda _: handler)
    options.rdzv_backend, options.standalone, options.node_rank = BACKEND, False, 0
    options.rdzv_endpoint = options.rdzv_endpoint or "-"
    if options.log_dir is None:
        keeps = options.redirects != "0" or options.tee != "0"
        options.log_dir = str(folder / "logs") if keeps else os.devnull
    # Of SIGUSR1, which Slurm sends, torchrun would die; and after half a minute it kills ranks that save.
    if hasattr(signal, "SIGUSR1") and "SIGUSR1" not in options.signals_to_handle:
        options.signals_to_handle += ",SIGUSR1"
    if options.shutdown_timeout is None and "TORCH_ELASTIC_SHUTDOWN_TIMEOUT" not in os.environ:
        options.shutdown_timeout = SAVING


def several(options: argparse.Namespace) -> Rendezvous:
    """The rendezvous of several machines."""
    nodes, node = int(options.nnodes), options.node_rank
    if not 0 <= node < nodes:
        raise UserError(f"--node-rank is {node}: with --nnodes {nodes} it is one of 0 to {nodes - 1}.")
    if not options.rdzv_endpoint:
        raise UserError("where do the nodes meet? Give --rdzv-endpoint HOST:PORT, an address of node 0.")
    host, port = parse_rendezvous_endpoint(options.rdzv_endpoint, PORT)
    if options.interface:
        interfaces.listen_only_on(options.interface)
    processes = run.determine_local_world_size(options.nproc_per_node)
    os.environ["TORCH_ELASTIC_WORKER_IDENTICAL"] = "1"  # ranks follow from the node's number, not from JSON
    team = Team(nodes, node, processes, options.join_timeout)
    handler = SeveralMachines(options.rdzv_id, (host, port), team)
    rendezvous.use_interface_to(host, port, team)
    return handler


def told(rank: int, failure: ProcessFailure) -> str:
    """How a rank ended."""
    if failure.exitcode >= 0:
        return f"rank {rank} ended with exit code {failure.exitcode}, so the other ranks were ended."
    name = signal_name(-failure.exitcode)
    why = " (the system does that when memory runs out)" if name == "SIGKILL" else ""
    return f"rank {rank} (process {failure.pid}) was killed by {name}{why}, so the other ranks were ended."


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
