"""Training on a GPU: nccl, synchronized norms, copies during a step, and whole runs with CUDA graphs.

As much as possible runs on the CPU too, with gloo.
"""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn

from fcos_fast.engine import distributed
from fcos_fast.engine import prefetch as prefetch_module
from fcos_fast.engine.checkpoint import load_checkpoint
from fcos_fast.engine.optimizer import OptimizerConfig, build_optimizer
from fcos_fast.engine.step import TrainStep
from fcos_fast.engine.train import train
from fcos_fast.models import build_detector
from tests.engine import ranks
from tests.engine.ranks import run_ranks
from tests.engine.small import MODEL, packed, with_nan

SGD = OptimizerConfig(name="sgd", lr=0.01, weight_decay=0.01)


@pytest.fixture
def group(device):
    """A process group of one process, with nccl on a GPU."""
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


@pytest.fixture(autouse=True)
def _same_kernels_each_time(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def batch(seed: int, device: str):
    """Two images of one size, packed."""
    return [part.to(device) for part in packed(seed, sizes=((64, 96), (64, 96)))]


def assert_same_training(model: nn.Module, other: nn.Module, wrapped: nn.Module, device: str) -> None:
    """Train ``model``, and ``other`` through ``wrapped``, for six steps and compare them.

    The fifth is not finite: it and the last are skipped.
    """
    steps = [TrainStep(m, build_optimizer(m, SGD), clip_norm=1.0) for m in (model, wrapped)]
    for t in range(6):
        images, targets = batch(t, device)
        if t == 4:
            images = with_nan(images, model)
        for step in steps:
            step(images, targets)
    tallies = [step.tally() for step in steps]
    assert [tally.skipped for tally in tallies] == [2, 2]
    assert tallies[0].finite == tallies[1].finite == 4
    expected, found = model.state_dict(), other.state_dict()
    assert all(value.isfinite().all() for value in found.values())
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-4, msg=key)


def build(device: str) -> nn.Module:
    torch.manual_seed(0)
    return build_detector(MODEL).to(device).train()


def test_a_process_group_of_one_trains_like_no_process_group(group, device, monkeypatch):
    """DistributedDataParallel, and the all-reduce of the totals behind the forward pass."""
    model = build(device)
    other = copy.deepcopy(model)
    with monkeypatch.context() as patched:
        patched.setattr(distributed, "world_size", lambda: 2)  # otherwise the model is not wrapped
        wrapped = distributed.parallel(other)
    assert wrapped is not other
    assert_same_training(model, other, wrapped, device)


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda"])
def test_synchronized_norms_of_one_process_are_plain_norms(group, device):
    model = build(device)
    other = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert any(isinstance(module, nn.SyncBatchNorm) for module in other.modules())
    assert_same_training(model, other, other, device)


def test_collectives_of_one_process(group, device):
    """The collectives of evaluation and checkpoints."""
    x = torch.arange(4.0, device=device)
    assert distributed.broadcast({"a": 1}) == {"a": 1}
    assert distributed.gather(3) == [3]
    assert distributed.mean(x).equal(x)
    work = dist.all_reduce(x, async_op=True)
    work.wait()
    assert x.tolist() == [0, 1, 2, 3]
    model = build(device)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for tensor in model.state_dict().values():
        dist.broadcast(tensor, src=0)
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())


@pytest.mark.gpu
def test_synchronized_norms_of_two_processes_use_the_whole_batch(tmp_path):
    """With gloo: nccl does not support two processes on one GPU."""
    ended = run_ranks(tmp_path, 2, ranks.synchronized_norms, "cuda", seconds=120)
    assert all(e.status == 0 and e.out.endswith("the same\n") for e in ended), ended


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_a_whole_run(tiny, device, cuda_graphs, capsys):
    """The checkpoint of a GPU run equals that of a CPU run up to rounding."""
    config = replace(tiny, data=replace(tiny.data, val="", workers=0))
    config = replace(config, train=replace(config.train, epochs=1, precision="float32"))
    expected = train(replace(config, train=replace(config.train, runs=f"{tiny.train.runs}-cpu")))
    found = train(
        replace(
            config, train=replace(config.train, device=device, cuda_graphs=cuda_graphs and device == "cuda")
        )
    )
    assert "run without graphs" not in capsys.readouterr().out
    weights = [load_checkpoint(run.folder / "last.pt")["model"] for run in (expected, found)]
    for key, value in weights[0].items():
        difference = (weights[1][key].double().cpu() - value.double()).norm()
        assert difference <= 0.02 * value.double().norm() + 1e-3, key


@pytest.mark.gpu
def test_batches_are_copied_while_the_previous_step_runs(monkeypatch):
    streams = []

    def remember(*arguments):
        streams.append(torch.cuda.Stream(*arguments))
        return streams[-1]

    cuda = SimpleNamespace(
        Stream=remember, stream=torch.cuda.stream, current_stream=torch.cuda.current_stream
    )
    monkeypatch.setattr(prefetch_module, "torch", SimpleNamespace(cuda=cuda))
    batches = [tuple(part.pin_memory() for part in batch(t, "cpu")) for t in range(2)]
    loader = prefetch_module.prefetch(batches, torch.device("cuda"))
    next(loader)
    torch.cuda.synchronize()
    torch.cuda._sleep(4_000_000_000)  # the step: about two seconds
    step = torch.cuda.Event()
    step.record()
    images, _ = next(loader)
    deadline = time.monotonic() + 1.0
    while not streams[0].query() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert streams[0].query(), "the copy waits for the step"
    assert not step.query(), "the step ended too early to tell"
    torch.cuda.synchronize()
    assert images.tensor.cpu().equal(batches[1][0].tensor)
