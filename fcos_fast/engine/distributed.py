"""Several processes that train one model: the only place that knows of them.

``torchrun`` starts them, and :func:`processes` brings them together. Without it there is one, of rank 0, and nothing
here does anything.

A process that fails breaks the work of all others, which learn of it as a broken connection, as a signal from
``torchrun``, or not at all. So the first that fails writes down why, in the store that ``torchrun`` keeps, and all
others end with these words. One that was killed could not write; its process is found to be gone.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fcos_fast.engine.launch import ProcessLostError, launched
from fcos_fast.precision import choose_device

TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others: longer than rank 0 takes to score an evaluation and write a checkpoint."""

PATIENCE = 2.0
"""Seconds until the reason of a broken connection shows, and half of those that Python has to answer Ctrl-C."""


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if _together() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if _together() else 1


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()


def own_device(name: str) -> torch.device:
    """The device of that name, as :func:`fcos_fast.precision.choose_device` has it; of several processes on GPUs, each
    has the one whose number its local rank is.

    Raises:
        ValueError: the device is not usable, is one GPU for several processes, or there are more of these than GPUs.
    """
    device = choose_device(name)
    if device.type != "cuda" or world_size() == 1:
        return device
    index, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if device.index is not None:
        raise ValueError(f"device {device} is one GPU for {world_size()} processes; take auto, cuda or cpu")
    if index >= gpus:
        raise ValueError(
            f"there are {gpus} GPUs for {os.environ.get('LOCAL_WORLD_SIZE', 'more')} processes on this machine; "
            f"start {gpus} with --nproc_per_node, or take device cpu"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def broadcast(value: Any) -> Any:
    """What ``value`` is on rank 0; anything that can be pickled."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def gather(value: Any) -> list[Any] | None:
    """On rank 0 the ``value`` of each process, by rank; None elsewhere."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size() if rank() == 0 else None
    dist.gather_object(value, values)
    return values


def mean(tensor: Tensor) -> Tensor:
    """The mean of a floating-point ``tensor`` over the processes."""
    if world_size() == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total / world_size()


@torch.no_grad()
def broadcast_model(model: nn.Module) -> None:
    """Give ``model`` the parameters and buffers that it has on rank 0.

    Parameters agree anyway; the running statistics of batch norms are each process's own.
    """
    if world_size() > 1:
        for tensor in [*model.parameters(), *model.buffers()]:
            whole = tensor.contiguous()  # what is sent, whatever the memory format
            dist.broadcast(whole, src=0)
            tensor.copy_(whole)


def parallel(model: nn.Module) -> nn.Module:
    """``model`` itself, or with several processes DistributedDataParallel around it, which averages the gradients.

    Buffers that training changes (the running statistics of batch norms) are, in each step, those of rank 0.
    """
    if world_size() == 1:
        return model
    device = next(model.parameters()).device
    model = nn.parallel.DistributedDataParallel(
        model, device_ids=[device] if device.type == "cuda" else None, gradient_as_bucket_view=True
    )
    # not as an argument, which newer torch calls by another name
    model.broadcast_buffers = any(isinstance(m, nn.modules.batchnorm._NormBase) for m in model.modules())
    return model


def advise(text: str) -> None:
    """What the user can do should this run end before its time; said with the reason."""
    if _group is not None:
        _group.advice = text


@contextmanager
def processes() -> Iterator[None]:
    """Bring the processes together that ``torchrun`` started, and part them at the end.

    Does nothing in a single process, or where they are together already. Tensors on the CPU travel by gloo, those on
    GPUs by nccl.

    Raises:
        ProcessLostError: another process failed, was killed, or does not answer for :data:`TIMEOUT`.
    """
    global _group
    if not launched() or _together():
        yield
        return
    _group = _Group()
    try:
        yield
    except SystemExit:
        raise
    except BaseException as error:
        _group.fail(error)
        raise
    finally:
        _group.leave()
        _group = None


class _Group:
    """This process among the others."""

    def __init__(self) -> None:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
        try:
            store, self.rank, size = next(dist.rendezvous("env://", timeout=TIMEOUT))
            dist.init_process_group(
                backend,
                store=dist.PrefixStore("group", store),
                rank=self.rank,
                world_size=size,
                timeout=TIMEOUT,
            )
            # of each process: what can see it, and its number there
            self.places: list[tuple[str | None, int]] = [(None, 0)] * size
            dist.all_gather_object(self.places, (_namespace(), os.getpid()))
        except (RuntimeError, ValueError) as error:
            raise ProcessLostError(
                f"the processes of torchrun did not come together: {_one_line(error)}"
            ) from error
        self.store = dist.PrefixStore("fcos_fast", store)
        self.advice = ""
        self.ending = False
        self.signals = _Signals(self)

    def fail(self, error: BaseException) -> None:
        """Tell the others of ``error``; raise where it is another's failure that shows here."""
        self.ending = True
        what = "was interrupted" if isinstance(error, KeyboardInterrupt) else f"failed: {_one_line(error)}"
        lost = _is_lost_connection(error)
        first = self.wait_for_reason() if lost else self.reason()
        if lost and first is None:
            first = (None, f"the others do not answer: {_one_line(error)}")
        if first is None:
            first = self.publish(self.rank, what)
        # a RuntimeError also where a signal to all of torchrun's processes ended a loader's worker first
        if first[0] != self.rank and (isinstance(error, RuntimeError) or first[1] == what):
            raise ProcessLostError(self.say(*first), alike=first[1] == what) from error

    def publish(self, culprit: int, what: str) -> tuple[int, str]:
        """The first failure that any process published, which is this one if there was none."""
        with suppress(RuntimeError):  # the store's own process may be the one that is gone
            words = self.store.compare_set("failure", "", f"{culprit} {what}").decode()
            culprit, what = words.split(" ", 1)
        return int(culprit), what

    def reason(self) -> tuple[int, str] | None:
        """Which process failed first, and how; None: no sign of a failure."""
        with suppress(RuntimeError):
            if self.store.check(["failure"]):
                culprit, what = self.store.get("failure").decode().split(" ", 1)
                return int(culprit), what
        namespace = _namespace()
        for other, (place, pid) in enumerate(self.places):
            if namespace is not None and place == namespace and _is_gone(pid) and not self.has_left(other):
                return self.publish(other, f"was killed or crashed: its process {pid} is gone")
        return None

    def has_left(self, other: int) -> bool:
        """Had a process done its work?"""
        with suppress(RuntimeError):
            return self.store.check([f"left {other}"])
        return False

    def wait_for_reason(self) -> tuple[int, str] | None:
        """As :meth:`reason`; a connection can break a moment before the reason shows."""
        deadline = time.monotonic() + PATIENCE
        while (found := self.reason()) is None and time.monotonic() < deadline:
            time.sleep(0.05)
        return found

    def say(self, culprit: int | None, what: str) -> str:
        """The line that this process ends with."""
        who = "" if culprit is None else f"rank {culprit} "
        return f"rank {self.rank} ends: {who}{what}" + (f"; {self.advice}" if self.advice else "")

    def leave(self) -> None:
        """Part from the others."""
        failed, self.ending = self.ending, True
        self.signals.restore()
        if not failed:
            with suppress(RuntimeError):
                self.store.set(f"left {self.rank}", "")
        # nccl waits for what is under way, which after a failure does not end; the end of the process ends it
        if not (failed and torch.cuda.is_initialized()):
            dist.destroy_process_group()


class _Signals:
    """Ends the process with the reason on torchrun's SIGTERM, and on Ctrl-C where Python's own answer does not come.

    Python answers a signal between two of its instructions. A process that waits for one that is gone, inside of gloo
    or nccl, never comes to the next; so a thread looks after the signals.
    """

    def __init__(self, group: _Group) -> None:
        self.group = group
        self.active = threading.current_thread() is threading.main_thread()  # only there signals can be set
        if not self.active:
            return
        self.receiver, self.sender = os.pipe()
        os.set_blocking(self.sender, False)
        self.old_descriptor = signal.set_wakeup_fd(self.sender, warn_on_full_buffer=False)
        self.old_handler = signal.signal(signal.SIGTERM, lambda *_: None)  # the thread's
        threading.Thread(target=self._watch, daemon=True).start()

    def restore(self) -> None:
        """As before."""
        if self.active:
            signal.set_wakeup_fd(self.old_descriptor)
            signal.signal(signal.SIGTERM, self.old_handler)
            os.close(self.sender)  # ends the thread

    def _watch(self) -> None:
        group = self.group
        while number := os.read(self.receiver, 1):
            if number[0] == signal.SIGINT:
                time.sleep(2 * PATIENCE)
            if number[0] in (signal.SIGINT, signal.SIGTERM) and not group.ending:
                what = "was interrupted" if number[0] == signal.SIGINT else "was ended by SIGTERM"
                first = group.reason() or group.publish(group.rank, what)
                print(group.say(*first), file=sys.stderr, flush=True)
                os._exit(128 + number[0])
        os.close(self.receiver)


_group: _Group | None = None


def _is_lost_connection(error: BaseException) -> bool:
    """Is this how gloo, nccl and the store complain of a process that is gone or does not answer?"""
    if isinstance(error, dist.DistError):
        return True
    words = ("gloo", "NCCL", "Connection")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def _namespace() -> str | None:
    """Processes with the same one see each other by their numbers; None where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{os.uname().nodename} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _is_gone(pid: int) -> bool:
    """Has the process ended? One whose parent has not asked yet how, a zombie, has."""
    try:
        os.kill(pid, 0)  # sends nothing
    except ProcessLookupError:
        return True
    except OSError:  # of another user, so it is there
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (OSError, IndexError):  # procfs cannot be read
        return False


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, (ValueError, OSError, FloatingPointError)):  # these speak for themselves
        return text
    return f"{type(error).__name__}: {text}"
