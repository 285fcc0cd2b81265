"""Two machines as two network namespaces, each with its own torchrun, folder and copy of the dataset."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from fcos_fast.engine.checkpoint import load_checkpoint
from fcos_fast.engine.config import Config, save_config
from fcos_fast.engine.run_folder import read_metrics
from tests.engine import ranks
from tests.engine.ranks import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

EPOCHS = 8

# The second machine is a process that holds a network namespace; both are in one user namespace, whose root may
# configure them. A pair of virtual devices is the cable.
NETWORK = """
set -e
unshare --net sleep 600 &
second=$!
trap "kill $second" EXIT
until [ "$(readlink /proc/$second/ns/net)" != "$(readlink /proc/$$/ns/net)" ]; do sleep 0.05; done
enter="nsenter --net --target $second"
ip link set lo up
$enter ip link set lo up
ip link add cable0 type veth peer name cable1 netns $second
ip addr add 10.77.0.1/24 dev cable0
$enter ip addr add 10.77.0.2/24 dev cable1
ip link set cable0 up
$enter ip link set cable1 up
echo ready
# each machine is told what to run
read first_command
read second_command
bash -c "$first_command" & one=$!
$enter bash -c "$second_command" & two=$!
wait $one && a=0 || a=$?
wait $two && b=0 || b=$?
echo "ended $a $b"
"""
UNSHARE = ["unshare", "--user", "--map-root-user", "--net", "bash", "-c"]


@pytest.fixture(scope="module", autouse=True)
def _network_namespaces() -> None:
    """Skip without the permission to make them."""
    missing = [tool for tool in ("unshare", "nsenter", "ip") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} is not installed (util-linux, iproute2)")
    attempt = subprocess.run(
        [*UNSHARE, NETWORK], input="true\ntrue\n", capture_output=True, text=True, timeout=60
    )
    if "ended 0 0" not in attempt.stdout:
        pytest.skip(f"network namespaces are not permitted here: {attempt.stderr.strip()[-200:]}")


@dataclass
class Machine:
    """A machine: its folder, with a copy of the dataset, and the output of its torchrun."""

    folder: Path
    rank: int

    def command(self, *options: str) -> str:
        """A line of bash that runs ``fcos-fast`` under torchrun in the folder."""
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={self.rank}"]
        torchrun += ["--master-addr=10.77.0.1", "--master-port=29511", "--nproc-per-node=1"]
        words = [*torchrun, "--max-restarts=1", "-m", "fcos_fast.cli", *options]
        variables = {
            "PYTHONPATH": os.pathsep.join(sys.path),
            "GLOO_SOCKET_IFNAME": f"cable{self.rank}",
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "HERE": str(self.folder),
        }
        environment = " ".join(f"{name}='{value}'" for name, value in variables.items())
        quoted = " ".join(f"'{word}'" for word in words)
        return f"cd '{self.folder}' && {environment} exec {quoted} > out 2> err"

    def read(self, name: str) -> str:
        file = self.folder / name
        return file.read_text() if file.exists() else ""

    def wait_for(self, text: str, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.read("out"):
            assert time.monotonic() < deadline, f"no {text!r} after {seconds} s: {self.read('err')}"
            time.sleep(0.05)

    def kill_worker(self) -> None:
        """As the system does when memory is short."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and _is_worker(entry, self.folder):
                os.kill(int(entry.name), signal.SIGKILL)
                return
        raise AssertionError(f"no worker in {self.folder}")


def _is_worker(process: Path, folder: Path) -> bool:
    try:
        environment = (process / "environ").read_bytes().split(b"\0")
        return b"LOCAL_RANK=0" in environment and f"HERE={folder}".encode() in environment
    except OSError:
        return False


@pytest.fixture
def machines(tmp_path, voc_root) -> list[Machine]:
    """Each has the dataset under another path."""
    found = [Machine(tmp_path / name, rank) for rank, name in enumerate(("first", "second"))]
    for machine in found:
        shutil.copytree(voc_root, machine.folder / f"data{machine.rank}")
    return found


@dataclass
class Running:
    """The processes of both machines."""

    process: subprocess.Popen[str]

    def wait(self, seconds: float = 150) -> str:
        out, err = self.process.communicate(timeout=seconds)
        return out.splitlines()[-1] if out else err


@pytest.fixture
def start() -> Iterator:
    """Start a command on each machine; the end of the test kills them."""
    running: list[Running] = []

    def begin(*commands: str) -> Running:
        process = subprocess.Popen(
            [*UNSHARE, NETWORK],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        process.stdin.write("".join(f"{command}\n" for command in commands))
        process.stdin.flush()
        running.append(Running(process))
        return running[-1]

    yield begin
    for one in running:
        if one.process.poll() is None:
            os.killpg(one.process.pid, signal.SIGKILL)
            one.process.wait()


@pytest.fixture
def config(tiny_config) -> Config:
    """Epochs of a third of a second of a small model: enough for a kill in the middle."""
    config: Config = tiny_config(Path("runs"))
    return replace(
        config,
        model=replace(config.model, backbone="mobilenet_v2"),
        data=replace(config.data, root="", val=""),
        train=replace(config.train, epochs=EPOCHS, batch_size=4, precision="float32"),
    )


def test_restart_after_a_kill_gives_the_same_bits(machines, config, start, tmp_path):
    """The second machine has no run folder, and its worker is killed after the first epoch."""
    whole = replace(config, data=replace(config.data, root=str(machines[0].folder / "data0")))
    whole = replace(whole, train=replace(whole.train, runs=str(tmp_path / "whole")))
    ended = run_ranks(tmp_path, 2, ranks.train_run, whole, tmp_path)
    assert [e.status for e in ended] == [0, 0], ended

    save_config(config, tmp_path / "config.yaml")
    options = ("train", "--config", str(tmp_path / "config.yaml"), "--data.root")
    running = start(*(machine.command(*options, f"$HERE/data{machine.rank}") for machine in machines))
    machines[0].wait_for(f"epoch 1/{EPOCHS}  loss")
    machines[1].kill_worker()
    assert running.wait() == "ended 0 0", machines[0].read("err")
    assert "restarted by torchrun; the run in runs/train continues" in machines[0].read("out")
    assert machines[1].read("out") == ""
    assert not (machines[1].folder / "runs").exists()
    assert [path.name for path in (machines[0].folder / "runs").iterdir()] == ["train"]
    folder = machines[0].folder / "runs" / "train"
    assert [row["epoch"] for row in read_metrics(folder / "metrics.csv")] == list(range(1, EPOCHS + 1))
    expected, found = (load_checkpoint(path / "last.pt") for path in (tmp_path / "whole" / "train", folder))
    assert all(torch.equal(value, found["model"][name]) for name, value in expected["model"].items())
    assert all(torch.equal(v, found["ema"]["model"][k]) for k, v in expected["ema"]["model"].items())
    assert found["config"]["data"]["root"] == str(machines[0].folder / "data0")
