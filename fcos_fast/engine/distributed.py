"""The processes that ``torchrun`` starts to train one model. Without it there is one process, of rank 0.

When a process fails, ``torchrun`` ends the others and reports which rank failed first, with its exit status or signal.
It does not know why. So the first process that fails records the reason in torchrun's store, and the others, which
notice a broken connection or torchrun's SIGTERM, end with that reason instead.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from fcos_fast.engine.launch import ProcessLostError, attempt, launched, with_contexts
from fcos_fast.precision import choose_device

TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others: longer than rank 0 takes to score an evaluation and write a checkpoint."""

LOST = "lost the connection to another process, which was killed or did not answer (see torchrun's report)"


def rank() -> int:
    """The rank of this process."""
    return dist.get_rank() if _together() else 0


def is_main() -> bool:
    """Whether this process prints and writes files: rank 0."""
    return rank() == 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if _together() else 1


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()


def own_device(name: str) -> torch.device:
    """The device of this process: :func:`fcos_fast.precision.choose_device`, with one GPU per process.

    Raises:
        ValueError: the device is not usable, names one GPU for several processes, or there are too few GPUs.
    """
    device = choose_device(name)
    if device.type != "cuda" or world_size() == 1:
        return device
    index, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if device.index is not None:
        raise ValueError(f"device {device} is one GPU for {world_size()} processes; use auto, cuda or cpu")
    if index >= gpus:
        raise ValueError(
            f"there are {gpus} GPUs for {os.environ.get('LOCAL_WORLD_SIZE', 'more')} processes on this machine; "
            f"start {gpus} with --nproc_per_node, or use device cpu"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def broadcast(value: Any) -> Any:
    """The ``value`` of rank 0, which can be pickled."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def gather(value: Any) -> list[Any] | None:
    """On rank 0 the ``value`` of each process, by rank; None elsewhere."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size() if is_main() else None
    dist.gather_object(value, values)
    return values


def mean(tensor: Tensor) -> Tensor:
    """The mean of a floating-point ``tensor`` over the processes."""
    if world_size() == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total / world_size()


def all_agree(value: bool) -> bool:
    """Whether ``value`` is true in every process."""
    values = gather(value)
    return broadcast(values is not None and all(values))


@torch.no_grad()
def broadcast_model(model: nn.Module) -> None:
    """Copy the parameters and buffers of rank 0 into ``model``.

    Parameters agree already; the running statistics of batch norms are each process's own.
    """
    if world_size() > 1:
        for tensor in [*model.parameters(), *model.buffers()]:
            contiguous = tensor.contiguous()  # what is sent, regardless of the memory format
            dist.broadcast(contiguous, src=0)
            tensor.copy_(contiguous)


def parallel(model: nn.Module) -> nn.Module:
    """``model`` itself, or with several processes DistributedDataParallel around it, which averages the gradients.

    In each step, rank 0's running statistics of batch norms are copied to all processes.
    """
    if world_size() == 1:
        return model
    device = next(model.parameters()).device
    wrapped = nn.parallel.DistributedDataParallel(
        model, device_ids=[device] if device.type == "cuda" else None, gradient_as_bucket_view=True
    )
    # not as an argument, which has another name in newer torch
    wrapped.broadcast_buffers = any(isinstance(m, nn.modules.batchnorm._NormBase) for m in model.modules())
    return wrapped


@contextmanager
def processes() -> Iterator[None]:
    """Form the process group of the processes that ``torchrun`` started, and destroy it at the end.

    Does nothing in a single process, or inside another such block. CPU tensors are exchanged by gloo, GPU tensors by
    nccl.

    Raises:
        ProcessLostError: another process failed first, was killed, or did not answer for :data:`TIMEOUT`.
    """
    global _failure
    if not launched() or _together():
        yield
        return
    _failure = _FirstFailure(_join())
    failed = False
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        failed = True
        _failure.raise_if_lost(error)
        raise
    finally:
        _failure = None
        # After a failure nccl would wait for collectives that never end; they end with the process.
        if not (failed and torch.cuda.is_initialized()):
            dist.destroy_process_group()


def advise(text: str) -> None:
    """What the user can do when a process fails; every :class:`ProcessLostError` ends with it."""
    if _failure is not None:
        _failure.advice = text


_groups = count()  # number of the next process group, the same in all processes


def _join() -> Store:
    """Initialize the default process group; returns torchrun's store."""
    # DistributedDataParallel imports this module. Imported after the group exists, its functions have the group as a
    # default argument and so keep it, with gloo's threads, until the interpreter exits. A thread that then still
    # releases the tensor of the last collective aborts the process (github.com/pytorch/pytorch/issues/190489).
    import torch.distributed.nn

    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    try:
        store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
        # torchrun keeps the store when it restarts processes, and a script can train several times
        store = PrefixStore(f"attempt {attempt()} group {next(_groups)}", store)
        dist.init_process_group(
            backend, store=PrefixStore("group", store), rank=rank, world_size=size, timeout=TIMEOUT
        )
    except (RuntimeError, ValueError) as error:
        raise ProcessLostError(f"the processes of torchrun did not connect: {_one_line(error)}") from error
    return store


class _FirstFailure:
    """Which process failed first, and why."""

    def __init__(self, store: Store) -> None:
        self.store = PrefixStore("fcos_fast", store)
        self.rank = rank()
        self.advice = ""

    def raise_if_lost(self, error: BaseException) -> None:
        """Raise a ProcessLostError unless ``error`` is this process's own and the first failure of all."""
        lost = any(_is_lost_connection(e) for e in with_contexts(error))
        if lost:
            what = LOST
        elif isinstance(error, KeyboardInterrupt):
            what = "was interrupted"
        else:
            what = f"failed: {_one_line(error)}"
        first_rank, first = self._record(what)
        if first_rank != self.rank or lost:
            who = f"rank {first_rank}" if first_rank != self.rank else "it"
            advice = f"; {self.advice}" if self.advice else ""
            message = f"rank {self.rank} ends: {who} {first}{advice}"
            raise ProcessLostError(message, repeated=first_rank != self.rank and first == what) from error

    def _record(self, what: str) -> tuple[int, str]:
        """The first failure that any process recorded; this one if there was none."""
        try:
            first = self.store.compare_set("failure", "", f"{self.rank} {what}").decode()
        except RuntimeError:  # without torchrun rank 0 has the store, and may be gone
            return self.rank, what
        first_rank, _, what = first.partition(" ")
        return int(first_rank), what


_failure: _FirstFailure | None = None


def _is_lost_connection(error: BaseException) -> bool:
    # gloo raises a plain RuntimeError
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, (ValueError, OSError, FloatingPointError)):  # their messages are complete
        return text
    return f"{type(error).__name__}: {text}"
