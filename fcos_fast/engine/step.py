"""One optimizer step that runs entirely on the device: the host queues work and reads no value."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fcos_fast.assignment import GroundTruth
from fcos_fast.engine.cuda_graphs import GraphedStep, why_not
from fcos_fast.engine.distributed import mean
from fcos_fast.engine.ema import ExponentialMovingAverage
from fcos_fast.engine.optimizer import prepare_for_device
from fcos_fast.models import Detector, ImageBatch
from fcos_fast.models.assigned import AssignedTargets, split
from fcos_fast.precision import autocast


@dataclass(frozen=True)
class Tally:
    """Totals of the steps since :meth:`TrainStep.begin_epoch`.

    Attributes:
        sums: sum of each of :attr:`TrainStep.losses`.
        floors: sum of the lower bound of each loss, mostly 0; see :meth:`fcos_fast.models.Detector.loss_floors`.
        skipped: number of skipped steps: the first with a loss or gradient that is not finite, and all after it.
        finite: number of steps before them.
    """

    sums: tuple[float, ...]
    floors: tuple[float, ...]
    skipped: int
    finite: int

    def __sub__(self, earlier: Tally) -> Tally:
        """The tally of the steps after an ``earlier`` one."""
        return Tally(
            tuple(a - b for a, b in zip(self.sums, earlier.sums, strict=True)),
            tuple(a - b for a, b in zip(self.floors, earlier.floors, strict=True)),
            self.skipped - earlier.skipped,
            self.finite - earlier.finite,
        )


class TrainStep:
    """Forward, backward, clipping, optimizer and moving average of one batch, without synchronizing the device.

    A step whose gradient is not finite is skipped: parameters, statistics of batch norms, optimizer and moving average
    do not change, and the tally counts it. Until :meth:`begin_epoch`, the steps after it are skipped too, so that its
    weights are still there to find the cause when the host reads the tally.

    Args:
        model: called as ``model(images, targets)``: a detector, or DistributedDataParallel around one.
        optimizer: optimizer of its parameters, with its state already restored.
        ema: moving average of the model's weights, or None.
        dtype: dtype of autocast.
        clip_norm: maximum norm of the gradient of all parameters together; 0 disables clipping.
        cuda_graphs: replay each step as one CUDA graph; if that is impossible, a line tells the reason.
        accumulate: equal parts in which a batch is computed, one after the other. Their gradients add up to that of the
            batch, except that batch norms normalize each part by itself.

    Attributes:
        losses: names of the model's losses.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        ema: ExponentialMovingAverage[Any] | None = None,
        dtype: torch.dtype = torch.float32,
        clip_norm: float = 0.0,
        cuda_graphs: bool = False,
        accumulate: int = 1,
    ) -> None:
        self.model, self.optimizer, self.ema, self.dtype = model, optimizer, ema, dtype
        self.clip_norm = clip_norm or math.inf
        self.accumulate = accumulate
        inside: Any = getattr(model, "module", model)  # DistributedDataParallel
        self.detector: Detector = inside
        self.losses: tuple[str, ...] = self.detector.LOSSES
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.device = self.parameters[0].device
        prepare_for_device(optimizer, self.device)
        self._statistics = RunningStatistics(model)
        self._sums, self._floors = torch.zeros(2, len(self.losses), device=self.device)
        self._skipped, self._finite = torch.zeros(2, device=self.device)
        self._graphed: GraphedStep | None = None
        if cuda_graphs:
            reason = why_not(self.device)
            if reason is None:
                self._graphed = GraphedStep(self._step, self.device)
            else:
                print(f"train.cuda_graphs: the steps run without graphs: {reason}", flush=True)

    def begin_epoch(self) -> None:
        """Reset the tally."""
        for total in (self._sums, self._floors, self._skipped, self._finite):
            total.zero_()

    def __call__(self, images: ImageBatch, targets: GroundTruth) -> None:
        """Train on a batch on the device, with the current learning rate of the optimizer."""
        if self.ema is not None:
            self.ema.advance()
        step = self._graphed or self._step
        step(images, targets)

    def tally(self) -> Tally:
        """Read the tally, which waits for the device. With several processes it is the mean over them."""
        totals = torch.stack([*self._sums, *self._floors, self._skipped, self._finite])
        *values, skipped, finite = mean(totals).tolist()
        count = len(self.losses)
        return Tally(tuple(values[:count]), tuple(values[count:]), int(skipped), int(finite))

    def _step(self, images: ImageBatch, targets: GroundTruth) -> None:
        self._statistics.keep()
        self.optimizer.zero_grad()
        assigned = self.detector.assign_batch(images, targets)
        *first, last = split(images, assigned, self.accumulate)
        for part in first:
            self._sums += self._add_gradients(*part, exchange=False)
        self._sums += self._add_gradients(*last, exchange=True)
        finite = nn.utils.clip_grad_norm_(self.parameters, self.clip_norm).isfinite() & (self._skipped == 0)
        skipped = (~finite).float()

        # torch's fused optimizers skip the step if found_inf is not 0
        self.optimizer.found_inf = skipped  # type: ignore[attr-defined]
        self.optimizer.step()
        self._statistics.restore_unless(finite)
        if self.ema is not None:
            self.ema.follow(self.model, self.ema.weight * finite)

        for name, floor in self.detector.loss_floors(assigned.targets).items():
            self._floors[self.losses.index(name)] += floor
        self._skipped += skipped
        self._finite += finite

    def _add_gradients(self, images: ImageBatch, targets: AssignedTargets, exchange: bool) -> Tensor:
        """Add the gradients of a part of the batch, which processes ``exchange`` after the last; returns its losses."""
        delayed = nullcontext() if exchange or self.model is self.detector else self.model.no_sync()  # type: ignore[operator]
        with delayed:
            with autocast(self.dtype, self.device):
                losses = self.model(images, targets)
            losses = torch.stack([losses[name] for name in self.losses])  # (L,)
            # 1 for each loss, NaN for one that is not finite: so the gradient is not finite either, on any rank, and
            # its norm is enough to check.
            losses.backward(1 + 0 * losses.detach())
        return losses.detach()


class RunningStatistics:
    """The buffers of a model's batch norms; the forward pass changes them before its loss is known."""

    def __init__(self, model: nn.Module) -> None:
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
        buffers = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
        self.by_dtype = [[b for b in buffers if b.dtype == dtype] for dtype in {b.dtype for b in buffers}]
        self.kept: list[Tensor] = []

    def keep(self) -> None:
        """Copy the current values."""
        self.kept = [torch.cat([b.flatten() for b in buffers]) for buffers in self.by_dtype]

    @torch.no_grad()
    def restore_unless(self, finite: Tensor) -> None:
        """Restore the copied values if ``finite`` is False."""
        for buffers, before in zip(self.by_dtype, self.kept, strict=True):
            after = torch.cat([b.flatten() for b in buffers])
            parts = torch.where(finite, after, before).split([b.numel() for b in buffers])
            torch._foreach_copy_(buffers, [x.view_as(b) for x, b in zip(parts, buffers, strict=True)])
