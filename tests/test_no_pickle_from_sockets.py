"""No pickle is loaded that came over a network: an attacker writes to every port that ranks listen on."""

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.sockets import Malicious, garbage, lets_in, listeners, send, store_messages, tree
from tests.violence import assert_same_end, command, events, sabotaged, wait_for_step

from overnight.saved import list_steps

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds sockets in /proc")

ROOT = Path(__file__).parent.parent  # for `import tests`
SMALL = "--device cpu --model.n-layer 1 --model.n-head 2 --model.n-embd 16 --model.block-size 16 ".split()
SMALL += "--batch-tokens 64 --optim.warmup-steps 2 --sample.length 10 --val-tokens 1500 --steps 600".split()
SMALL += "--eval-every 300 --sample-every 300 --save-every 100 --keep 1".split()


@pytest.fixture
def start(data_folder: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """`start(run, *options, by=[...])`: train in the background, or by an agent of that command line."""
    begun: list[subprocess.Popen] = []

    def begin(run: Path, *more: object, by: tuple = (), env: dict | None = None) -> subprocess.Popen:
        options = ["--data", data_folder, "--run", run, *SMALL, *more]
        line = [*map(str, by), *command("train", "shakespeare-cpu", *options)[2 if by else 0 :]]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        begun.append(subprocess.Popen(line, env=env, **pipes))
        return begun[-1]

    yield begin
    for process in begun:
        for pid in tree(process.pid) if process.poll() is None else []:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        process.communicate()


@pytest.fixture(scope="module")
def whole(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two ranks that nobody disturbed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    line = command("train", "shakespeare-cpu", "--data", data_folder, "--run", run, *SMALL, "--processes", 2)
    assert subprocess.run(line, capture_output=True).returncode == 0
    return run


def names_of_rounds(process: subprocess.Popen) -> list[str]:
    """Under which names torchrun has its state: an attacker is assumed to have guessed its random part."""
    ids = {"none"}
    for pid in tree(process.pid):
        environment = Path(f"/proc/{pid}/environ").read_bytes().decode("utf-8", "replace").split("\0")
        ids |= {line.partition("=")[2] for line in environment if line.startswith("TORCHELASTIC_RUN_ID=")}
    return [f"torch.rendezvous.{name}" for name in ids]


def test_ranks_of_one_machine_listen_on_loopback_only_and_let_nobody_in(
    start: Callable[..., subprocess.Popen], whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(run, "--processes", 2)
    wait_for_step(run, 5, process)
    found = listeners(process.pid)
    assert {(kind, address) for kind, address, _ in found} == {("tcp", "127.0.0.1")}, found
    assert not any(lets_in(address, port) for _, address, port in found)
    assert process.wait(300) == 0, process.stderr.read()
    assert "overnight" not in process.stderr.read()  # no complaint
    assert_same_end(run, whole)
    assert len(events(run, "start")) == 1
    assert events(run, "resume") == []


def test_a_process_alone_listens_on_nothing(start: Callable[..., subprocess.Popen], tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(run, "--steps", 100_000)
    wait_for_step(run, 5, process)
    assert listeners(process.pid) == []


def test_one_shard_listens_on_loopback_only(start: Callable[..., subprocess.Popen], tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(run, "--steps", 100_000, "--parallel", "fsdp")
    wait_for_step(run, 5, process)
    assert {address for _, address, _ in listeners(process.pid)} <= {"127.0.0.1"}


def agents(
    start: Callable[..., subprocess.Popen], run: Path, *options: object, restarts: int = 0
) -> list[subprocess.Popen]:
    """Two machines, as far as agents can see: node 0 has 127.0.0.2, which others reach."""
    with socket.create_server(("127.0.0.2", 0)) as free:
        port = free.getsockname()[1]
    started = []
    for node in range(2):
        agent = [sys.executable, "-m", "overnight.agent", "--nnodes", 2, "--node-rank", node]
        agent += ["--nproc-per-node", 1, "--max-restarts", restarts]
        agent += ["--rdzv-endpoint", f"127.0.0.2:{port}", "-m", "--"]
        started.append(start(run, *options, by=tuple(agent)))
    return started


POISON = """
import datetime, sys
from pathlib import Path
import torch.distributed as dist
from tests.sockets import poisons
address, port, mark, names = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:]
store = dist.TCPStore(address, port, is_master=False, timeout=datetime.timedelta(seconds=20))
for key in [*store.list_keys(), *names]:
    for poison in poisons(mark):
        store.set(key, poison)
        store.set(key + "/x", poison)
print(len(store.list_keys()))
"""


def test_agents_of_several_machines_listen_on_the_endpoint_only_and_load_nothing(
    start: Callable[..., subprocess.Popen], tmp_path: Path
) -> None:
    """Whoever reaches the store can stop the run: with every key overwritten it may end in any way."""
    run, mark = tmp_path / "run", tmp_path / "loaded"
    processes = agents(start, run, "--steps", 100_000)
    wait_for_step(run, 5, processes[0])
    found = [listener for process in processes for listener in listeners(process.pid)]
    (store,) = [listener for listener in found if listener[1] == "127.0.0.2"]
    assert {address for _, address, _ in found} == {"127.0.0.1", "127.0.0.2"}
    names = names_of_rounds(processes[0])
    messages = garbage(mark) + store_messages(names, mark)
    assert [listener for listener in found if lets_in(*listener[1:])] == [store]
    held = send(*store[1:], messages)
    line = [sys.executable, "-c", POISON, store[1], str(store[2]), str(mark), *names]
    written = subprocess.run(line, capture_output=True, text=True, cwd=ROOT)
    assert int(written.stdout) > 4, written.stderr
    os.kill(tree(processes[1].pid)[-1], 9)  # now the agents look at what is in the store
    until = time.monotonic() + 20
    while time.monotonic() < until and any(process.poll() is None for process in processes):
        time.sleep(0.1)
    assert not mark.exists()
    for connection in held:
        connection.close()


def test_two_machines_end_as_two_ranks_of_one(
    start: Callable[..., subprocess.Popen], whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    processes = agents(start, run)
    assert [process.wait(300) for process in processes] == [0, 0], processes[0].stderr.read()
    assert_same_end(run, whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_agents_that_get_a_signal_wait_until_their_ranks_have_saved(
    number: int, start: Callable[..., subprocess.Popen], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    processes = agents(start, run, "--steps", 100_000, "--eval-every", 0, "--sample-every", 0)
    wait_for_step(run, 5, processes[0])
    for process in processes:
        process.send_signal(number)
    assert [process.wait(300) for process in processes] == [75, 75]
    assert list_steps(run)[-1] == events(run, "preempted")[0]["step"]


def test_a_machine_that_is_lost_and_started_again_is_waited_for(
    start: Callable[..., subprocess.Popen], whole: Path, tmp_path: Path
) -> None:
    """Each of the two: also the one with the store."""
    for lost in range(2):
        run = tmp_path / f"run{lost}"
        processes = agents(start, run, restarts=2)
        wait_for_step(run, 110, processes[0])
        for pid in tree(processes[lost].pid):
            os.kill(pid, signal.SIGKILL)
        processes[lost].wait()
        again = start(run, by=tuple(processes[lost].args[: processes[lost].args.index("--") + 1]))
        assert [again.wait(300), processes[1 - lost].wait(300)] == [0, 0]
        assert events(run, "resume")[0]["step"] == 100
        assert_same_end(run, whole)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_ranks_exchange_no_pickles_among_themselves(
    parallel: str, start: Callable[..., subprocess.Popen], tmp_path: Path
) -> None:
    """Python reports (PEP 578) what every pickle that is loaded would call."""
    seen = tmp_path / "seen"
    more = ["--steps", 20, "--processes", 2, "--parallel", parallel]
    process = start(tmp_path / "run", *more, env=sabotaged(PICKLES=str(seen)))
    assert process.wait(300) == 0, process.stderr.read()
    assert not seen.exists(), seen.read_text()


def test_pickles_would_be_seen(tmp_path: Path) -> None:
    line = [sys.executable, "-c", f"import pickle; pickle.loads({pickle.dumps(Malicious(tmp_path / 'a'))!r})"]
    subprocess.run(
        line, env=sabotaged(PICKLES=str(tmp_path / "seen")), check=True, cwd=Path(__file__).parent.parent
    )
    assert "mkdir" in (tmp_path / "seen").read_text()


def test_torchruns_own_rendezvous_is_refused(start: Callable[..., subprocess.Popen], tmp_path: Path) -> None:
    for backend in ("c10d", "etcd", "static-x"):
        by = (sys.executable, "-m", "overnight.agent", "--rdzv-backend", backend, "-m", "--")
        process = start(tmp_path / "run", by=by)
        assert process.wait(120) == 2
        assert f"--rdzv-backend {backend} loads pickles from the network" in process.stderr.read()


def test_ranks_of_torchrun_warn_of_it(start: Callable[..., subprocess.Popen], tmp_path: Path) -> None:
    by = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "-m", "--")
    process = start(tmp_path / "run", "--steps", 10, by=by)
    assert process.wait(300) == 0
    assert process.stderr.read().count("torchrun's rendezvous runs code for whoever reaches its port") == 1
