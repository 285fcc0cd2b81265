"""One optimizer step, all of it on the device: the host queues work and reads nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fcos_fast.assignment import GroundTruth
from fcos_fast.engine.cuda_graphs import GraphedStep, why_not
from fcos_fast.engine.distributed import mean
from fcos_fast.engine.ema import ExponentialMovingAverage
from fcos_fast.engine.optimizer import prepare_for_device
from fcos_fast.models import ImageBatch
from fcos_fast.precision import autocast


@dataclass(frozen=True)
class Tally:
    """What the steps since :meth:`TrainStep.begin_epoch` added up to.

    Attributes:
        sums: of each of :attr:`TrainStep.losses`.
        skipped: number of steps whose losses or gradients were not finite.
        finite: number of steps before the first of these.
    """

    sums: tuple[float, ...]
    skipped: int
    finite: int


class TrainStep:
    """Forward, backward, clipping, guard, optimizer and moving average of one batch, without waiting for the device.

    A step whose gradient is not finite is skipped: parameters, the batch norms' statistics, optimizer and moving
    average stay as they were, and the tally counts it.

    Args:
        model: called as ``model(images, targets)``: a detector, or DistributedDataParallel around one.
        optimizer: over its parameters; its state is loaded before.
        ema: moving average of the model's weights, or None.
        dtype: of autocast.
        clip_norm: largest norm of the gradient of all parameters together; 0 does not clip.
        cuda_graphs: replay each step as one CUDA graph; where that cannot be, a line says why.

    Attributes:
        losses: names of the losses of the model.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        ema: ExponentialMovingAverage | None = None,
        dtype: torch.dtype = torch.float32,
        clip_norm: float = 0.0,
        cuda_graphs: bool = False,
    ) -> None:
        self.model, self.optimizer, self.ema, self.dtype = model, optimizer, ema, dtype
        self.clip_norm = clip_norm or math.inf
        self.losses = getattr(model, "module", model).LOSSES
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.device = self.parameters[0].device
        prepare_for_device(optimizer, self.device)
        self._statistics = _RunningStatistics(model)
        self._tally = torch.zeros(len(self.losses) + 2, device=self.device)
        self._run = self._step
        if cuda_graphs:
            reason = why_not(self.device)
            if reason is None:
                self._run = GraphedStep(self._step, self.device)
            else:
                print(f"train.cuda_graphs: the steps run without graphs: {reason}", flush=True)

    def begin_epoch(self) -> None:
        """Set the tally to zero."""
        self._tally.zero_()

    def __call__(self, images: ImageBatch, targets: GroundTruth) -> None:
        """Train on a batch that lies on the device, with the learning rate that the optimizer has."""
        if self.ema is not None:
            self.ema.advance()
        self._run(images, targets)

    def tally(self) -> Tally:
        """Read the tally, which waits for the device: of several processes the mean, that of the global batches."""
        *sums, skipped, finite = mean(self._tally).tolist()
        return Tally(tuple(sums), int(skipped), int(finite))

    def _step(self, images: ImageBatch, targets: GroundTruth) -> None:
        self._statistics.keep()
        with autocast(self.dtype, self.device):
            losses = self.model(images, targets)
        losses = torch.stack([losses[name] for name in self.losses])  # (L,)
        self.optimizer.zero_grad()
        # 1 for each loss, NaN for one that is not finite: then the gradient is not either, in every process alike, and
        # its norm says all.
        losses.backward(1 + 0 * losses.detach())
        finite = nn.utils.clip_grad_norm_(self.parameters, self.clip_norm).isfinite()
        skipped = (~finite).float()

        self.optimizer.found_inf = skipped  # torch's fused optimizers then leave everything as it is
        self.optimizer.step()
        self._statistics.restore_unless(finite)
        if self.ema is not None:
            self.ema.follow(self.model, self.ema.weight * finite)

        self._tally[: len(self.losses)] += losses.detach()
        self._tally[-2] += skipped
        self._tally[-1] += self._tally[-2] == 0


class _RunningStatistics:
    """The buffers of a model's batch norms, which the forward pass changes before its loss is known."""

    def __init__(self, model: nn.Module) -> None:
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
        buffers = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
        self.by_dtype = [[b for b in buffers if b.dtype == dtype] for dtype in {b.dtype for b in buffers}]
        self.kept: list[Tensor] = []

    def keep(self) -> None:
        """Remember them as they are."""
        self.kept = [torch.cat([b.flatten() for b in buffers]) for buffers in self.by_dtype]

    def restore_unless(self, finite: Tensor) -> None:
        """Make them what they were, where ``finite`` is False."""
        for buffers, before in zip(self.by_dtype, self.kept, strict=True):
            after = torch.cat([b.flatten() for b in buffers])
            parts = torch.where(finite, after, before).split([b.numel() for b in buffers])
            torch._foreach_copy_(buffers, [x.view_as(b) for x, b in zip(parts, buffers, strict=True)])
