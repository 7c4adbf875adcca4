"""Two hosts train one model, one is lost in the middle, and both go on: network namespaces with addresses and
host names of their own, `python -m overnight.agent`, gloo. The end must be that of two ranks nobody stopped.

python benchmarks/nodes.py [--steps 900]     as root, on Linux; about 3 minutes
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # for tests.violence

from tests.violence import assert_same_end, command, events  # noqa: E402

from common import last_step, save  # noqa: E402

HOSTS = {"night-a": "10.77.41.1", "night-b": "10.77.41.2"}
SMALL = "--device cpu --model.n-layer 2 --model.n-head 2 --model.n-embd 32 --model.block-size 32".split()
SMALL += "--batch-tokens 256 --optim.warmup-steps 2 --eval-every 100 --sample-every 200".split()
SMALL += ["--save-every", "40"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=900)
    steps = parser.parse_args().steps
    try:
        connect()
    except (OSError, subprocess.CalledProcessError) as error:
        disconnect()
        why = getattr(error, "stderr", None) or error
        print(f"nodes: nothing was measured, network namespaces are not allowed here ({str(why).strip()}).")
        return 0
    try:
        with tempfile.TemporaryDirectory() as place:
            save("nodes", lose_a_host(Path(place), steps))
    finally:
        disconnect()
    return 0


def lose_a_host(place: Path, steps: int) -> dict[str, float]:
    """Seconds that each part of a lost host took."""
    data, run, whole = place / "data", place / "run", place / "whole"
    text = place / "text.txt"
    text.write_text("".join(f"the night is {number} steps long\n" for number in range(20_000)))
    subprocess.run(command("prepare", f"text:{text}", "--tokenizer", "char", "--out", data), check=True)
    train = ["train", "shakespeare-cpu", "--data", str(data), *SMALL, "--steps", str(steps)]
    os.environ["OMP_NUM_THREADS"] = "1"
    subprocess.run(command(*train, "--run", whole, "--processes", 2), check=True, stdout=subprocess.DEVNULL)

    hosts = {host: start(host, [*train, "--run", str(run)], place) for host in HOSTS}
    wait_for_step(run, steps // 3, hosts)
    assert events(run, "start")[0]["detail"]["world"]["size"] == 2
    reached = last_step(run)
    print(f"nodes: at step {reached}, night-b loses its network and dies", flush=True)
    lost = time.monotonic()
    shell("ip -n night-b link set night-b down")
    kill_all("night-b")
    wait_until(lambda: "has not been heard of" in (place / "night-a.log").read_text(), 60)
    noticed = time.monotonic()
    print(f"nodes: night-a has noticed after {noticed - lost:.0f} s; night-b comes back", flush=True)
    shell("ip -n night-b link set night-b up")
    hosts["night-b"] = start("night-b", [*train, "--run", str(run)], place)
    back = time.monotonic()
    wait_until(lambda: any(last_step(run) > resume["step"] for resume in events(run, "resume")), 120)
    going = time.monotonic()
    codes = [process.wait(240) for process in hosts.values()]
    assert codes == [0, 0], (place / "night-a.log").read_text()
    assert_same_end(run, whole)
    resumed = events(run, "resume")[-1]["step"]
    return {
        "steps": steps,
        "lost at step": reached,
        "resumed at step": resumed,
        "seconds until the other host noticed": round(noticed - lost, 1),
        "seconds from its return until both had gone further": round(going - back, 1),
    }


def start(host: str, train: list[str], place: Path) -> subprocess.Popen:
    """The agent on a host, as a person would start it there."""
    agent = [sys.executable, "-m", "overnight.agent", "--nnodes=2", f"--node-rank={[*HOSTS].index(host)}"]
    agent += ["--nproc-per-node=1", f"--rdzv-endpoint={HOSTS['night-a']}:29500"]
    agent += ["--max-restarts=3", "-m", "--", "overnight"]
    inside = ["ip", "netns", "exec", host, "unshare", "--uts", "sh", "-c"]
    inside += [f'hostname {host}; exec "$@"', "sh"]
    with open(place / f"{host}.log", "ab") as log:
        return subprocess.Popen([*inside, *agent, *train], stdout=log, stderr=log)


def connect() -> None:
    """Two namespaces and a cable between them."""
    for host in HOSTS:
        shell(f"ip netns add {host}")
    shell("ip link add night-a netns night-a type veth peer name night-b netns night-b")
    for host, address in HOSTS.items():
        shell(f"ip -n {host} addr add {address}/24 dev {host}")
        shell(f"ip -n {host} link set {host} up")
        shell(f"ip -n {host} link set lo up")


def disconnect() -> None:
    for host in HOSTS:
        kill_all(host)
        subprocess.run(["ip", "netns", "del", host], capture_output=True)


def kill_all(host: str) -> None:
    """Everything that runs on a host, as when its power fails."""
    found = subprocess.run(["ip", "netns", "pids", host], capture_output=True, text=True)
    for pid in found.stdout.split():
        os.kill(int(pid), signal.SIGKILL)


def shell(line: str) -> None:
    subprocess.run(line.split(), check=True, capture_output=True, text=True)


def wait_for_step(run: Path, step: int, hosts: dict[str, subprocess.Popen]) -> None:
    while last_step(run) < step:
        assert all(process.poll() is None for process in hosts.values()), "a host ended by itself"
        time.sleep(0.05)


def wait_until(true: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
