"""Start the processes of a distributed run, and the functions that run in them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import fcos_fast
from fcos_fast.cli.main import main
from fcos_fast.data import Categories
from fcos_fast.data.transforms import AugmentedDataset
from fcos_fast.engine import distributed, evaluate, initial_weights, run, train
from fcos_fast.engine.callbacks import Callback
from fcos_fast.engine.config import Config
from fcos_fast.models import FCOS, Detector, fcos, retinanet
from fcos_fast.models.presets import RETINANET_PRESETS

SERVER = multiprocessing.get_context(
    "forkserver"
)  # forks a process that has imported everything and run nothing
SERVER.set_forkserver_preload([__name__])


@dataclass(frozen=True)
class Ended:
    """Exit status and output of a process."""

    status: int
    out: str
    err: str


class Ranks:
    """Processes as ``torchrun`` starts them, each with ``function(*arguments)``. The end of the block kills them.

    Args:
        folder: folder for their output.
        count: number of processes.
        function: a function of this file.
        *arguments: its arguments.
    """

    def __init__(self, folder: Path, count: int, function: Callable, *arguments: Any) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        # in this process, as in torchrun's agent, which outlives its workers
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        environment = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self.store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
        }
        self.processes = [
            SERVER.Process(
                target=_run_rank,
                args=(
                    folder,
                    environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                    function,
                    arguments,
                ),
            )
            for rank in range(count)
        ]

    def __enter__(self) -> Ranks:
        for process in self.processes:
            process.start()
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    def wait(self, seconds: float = 60) -> list[Ended]:
        """Wait until all have ended; returns how, by rank."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.1, deadline - time.monotonic()))
        hanging = [rank for rank, process in enumerate(self.processes) if process.exitcode is None]
        ended = [
            Ended(process.exitcode, self.read(rank, "out"), self.read(rank, "err"))
            for rank, process in enumerate(self.processes)
        ]
        assert not hanging, f"ranks {hanging} are running after {seconds} s; {ended}"
        return ended

    def read(self, rank: int, name: str) -> str:
        """The output of a process so far: ``out`` or ``err``."""
        file = self.folder / f"{rank}.{name}"
        return file.read_text() if file.exists() else ""

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Wait until rank 0 prints ``text``."""
        deadline = time.monotonic() + seconds
        while text not in self.read(0, "out"):
            assert time.monotonic() < deadline, f"no {text!r} after {seconds} s: {self.read(0, 'err')}"
            time.sleep(0.02)

    def signal(self, rank: int, number: int) -> None:
        """Send a signal to one process."""
        os.kill(self.processes[rank].pid, number)


def run_ranks(
    folder: Path, count: int, function: Callable, *arguments: Any, seconds: float = 60
) -> list[Ended]:
    """Run the function in ``count`` processes, to the end."""
    with Ranks(folder, count, function, *arguments) as ranks:
        return ranks.wait(seconds)


def _run_rank(folder: Path, environment: dict[str, str], function: Callable, arguments: tuple) -> None:
    os.environ |= environment
    for name, descriptor in (("out", 1), ("err", 2)):
        os.dup2(
            os.open(folder / f"{environment['RANK']}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
            descriptor,
        )
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
    torch.set_num_threads(1)
    status = function(*arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(status)


# Functions that run in each rank


def command_line(*arguments: str) -> int:
    """``fcos-fast``."""
    return main(arguments)


def in_own_folder(parent: Path, *arguments: str) -> int:
    """``fcos-fast`` in a folder that no other rank has; ``{RANK}`` in an argument is the rank."""
    folder = parent / os.environ["RANK"]
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    return main([argument.replace("{RANK}", os.environ["RANK"]) for argument in arguments])


def train_run(config: Config, result: Path) -> None:
    """A whole run; each rank saves its result."""
    outcome = train.train(config)
    ap = None if outcome.result is None else outcome.result.summary()
    torch.save((str(outcome.folder), ap, outcome.detections), result / f"{os.environ['RANK']}.pt")


def as_a_function(config: Config, times: int) -> None:
    """``fcos_fast.train``, several times."""
    for _ in range(times):
        fcos_fast.train(config=config)


def initial_model(config: Config, categories: Categories, folder: Path) -> None:
    """Save the state dict of a new model; ``asked`` lists the ranks that load the weights of its backbone, ones."""

    def load(backbone: torch.nn.Module, name: str) -> None:
        with (folder / "asked").open("a") as file:
            print(distributed.rank(), file=file)
        for parameter in backbone.parameters():
            torch.nn.init.ones_(parameter)

    initial_weights.load_pretrained = load
    with distributed.processes():
        state = run.initial_state(config, categories, torch.device("cpu"), is_new=True)
        torch.save(state.model.state_dict(), folder / f"{distributed.rank()}.pt")


class StopAt(Callback):
    """Stops a run after a step; only rank 0 calls it."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, run: Any, row: dict[str, float]) -> None:
        assert distributed.rank() == 0
        if row["step"] == self.step:
            run.stop("enough")


def train_until(config: Config, step: int, result: Path) -> None:
    """A run that a callback stops; each rank saves why and where."""
    outcome = train.train(config, [StopAt(step)])
    torch.save((outcome.stopped, outcome.result.ap), result / f"{os.environ['RANK']}.pt")


def with_nan_on(bad: int, step: int, *arguments: str) -> int:
    """``fcos-fast``, with a NaN loss on one rank in one step."""
    forward, calls = FCOS.forward, iter(range(1, 10**9))

    def broken(self, *inputs):
        losses = forward(self, *inputs)
        if self.training and next(calls) == step and distributed.rank() == bad:
            losses["classification"] = losses["classification"] * torch.nan
        return losses

    FCOS.forward = broken
    return main(arguments)


def with_nan_image(index: int, *arguments: str) -> int:
    """``fcos-fast``, with NaN pixels in one image of the training split."""
    real = AugmentedDataset.__getitem__

    def broken(self, key):
        image, target = real(self, key)
        return (image * torch.nan if key.image == index else image), target

    AugmentedDataset.__getitem__ = broken
    return main(arguments)


def losses_and_gradients(cases: list[tuple[dict, list, list]], result: Path) -> None:
    """Losses and gradients of each model, with each rank on its share of the batch; rank 0 saves them."""
    with distributed.processes():
        found = []
        for overrides, images, targets in cases:
            share = len(images) // distributed.world_size()
            own = slice(distributed.rank() * share, (distributed.rank() + 1) * share)
            model = small_model(**overrides).double()
            wrapped = distributed.parallel(model)
            assert wrapped is not model
            found.append(_backward(model, wrapped, images[own], targets[own]))
        if distributed.rank() == 0:
            torch.save(found, result)


def _backward(
    model: Detector, called: torch.nn.Module, images: list, targets: list
) -> dict[str, torch.Tensor]:
    losses = torch.stack([called(images, targets)[name] for name in model.LOSSES])
    losses.sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return {"losses": distributed.mean(losses.detach()), **gradients}


def one_process(overrides: dict, images: list, targets: list) -> dict[str, torch.Tensor]:
    """:func:`losses_and_gradients` with one process."""
    model = small_model(**overrides).double()
    return _backward(model, model, images, targets)


def small_model(**overrides: Any) -> Detector:
    """A small detector with fixed random weights."""
    torch.manual_seed(0)
    settings = {"num_classes": 3, "fpn_channels": 32, "head_channels": 32, "head_convs": 1, "min_size": None}
    build = retinanet if overrides.get("preset") in RETINANET_PRESETS else fcos
    return build("resnet18", **(settings | overrides)).train()


def evaluated(model: Detector, dataset: Any, result: Path) -> None:
    """Detections and average precision."""
    with distributed.processes():
        found = evaluate.evaluate(model, dataset, batch_size=2)
        torch.save((found[0].summary(), found[1]), result / f"{distributed.rank()}.pt")


def threads_after(function: Callable, *arguments: Any) -> None:
    """Print the names of gloo's threads that ``function`` left running."""
    function(*arguments)
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    print("threads:", *(name for name in names if "gloo" in name))


def fails_on(bad: int) -> None:
    """One rank fails while the others wait for it."""
    with distributed.processes():
        if distributed.rank() == bad:
            raise ValueError("7 is\nno box")
        dist.all_reduce(torch.zeros(1))


def two_groups() -> None:
    """A rank comes late to the second."""
    for _ in range(2):
        with distributed.processes():
            total = torch.ones(1)
            dist.all_reduce(total)
            assert total.item() == distributed.world_size()
        time.sleep(float(os.environ["RANK"]))


def silent_on(bad: int, timeout: float) -> None:
    """One rank does not answer."""
    distributed.TIMEOUT = timedelta(seconds=timeout)
    with distributed.processes():
        if distributed.rank() == bad:
            time.sleep(60)
        dist.all_reduce(torch.zeros(1))


def synchronized_norms(device: str) -> None:
    """Compare SyncBatchNorm on this rank's half of a batch with BatchNorm on the whole batch."""
    dist.init_process_group("gloo")
    generator = torch.Generator().manual_seed(0)
    x, flow = (torch.randn(4, 8, 5, 7, generator=generator).to(device) for _ in range(2))
    own = slice(2 * dist.get_rank(), 2 * dist.get_rank() + 2)
    whole = torch.nn.BatchNorm2d(8).to(device)
    part = torch.nn.SyncBatchNorm(8).to(device)
    y, y_own = whole(x.requires_grad_()), part(own_x := x.detach()[own].clone().requires_grad_())
    y.backward(flow)
    y_own.backward(flow[own])
    for a, b in (
        (y_own, y[own]),
        (own_x.grad, x.grad[own]),
        (part.running_mean, whole.running_mean),
        (part.running_var, whole.running_var),
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    print("the same", flush=True)
    dist.destroy_process_group()
