"""Base class of the detectors: everything around the head, from images to losses or detections."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fcos_fast.assignment import GroundTruth
from fcos_fast.boxes import has_area
from fcos_fast.models.assigned import AssignedTargets
from fcos_fast.models.backbones import backbone_options, build_backbone
from fcos_fast.models.checks import check_images, check_packed, check_targets
from fcos_fast.models.class_weights import class_weights
from fcos_fast.models.config import DetectorConfig
from fcos_fast.models.deform_conv import DeformConv2d
from fcos_fast.models.folding import conv_norm_pairs, fold_batch_norms
from fcos_fast.models.fpn import FPN, BackboneWithFPN
from fcos_fast.models.inference_conv import use_inference_convolutions
from fcos_fast.models.norm import GroupNormReLU
from fcos_fast.models.packing import learned_target
from fcos_fast.models.sizes import Size
from fcos_fast.models.timm_backbone import TimmBackbone
from fcos_fast.models.transform import ImageBatch, Transform, image_size, scale_boxes
from fcos_fast.precision import Precision, choose_precision

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing from Python 3.11 on

_FOR_INFERENCE = "this model is a copy made by optimize_for_inference, without batch norms"


class Detector(nn.Module):
    """Base class of the detectors: a transform, a backbone with a pyramid, a head.

    In training mode, ``model(images, targets)`` returns the losses by name, float32 scalars. In evaluation mode,
    ``model(images)`` returns one dict per image: ``boxes`` (N, 4) float32 xyxy in pixels of the original image,
    ``scores`` (N,) float32 in descending order, ``labels`` (N,) int64 in 0..C-1.

    Images are a list of RGB tensors (3, H, W) of any sizes, uint8 or float in [0, 1]. Targets are one
    dict per image: ``boxes`` (N, 4) float32 xyxy in pixels and ``labels`` (N,) int64 in 0..C-1; N may be 0.

    Training also accepts the output of :class:`BatchPacker`, on the model's device: an :class:`ImageBatch` and its
    :class:`GroundTruth`, or the output of :meth:`assign_batch` for it.

    A subclass adds the ``head``, from [P_min, ..., P_max] to a tuple of lists with one tensor (B, channels, H, W) per
    level, and implements :meth:`assign`, :meth:`losses` and :meth:`postprocess` for it.

    Attributes:
        LOSSES: names of the losses, in the order in which they are reported.
        inference_dtype: dtype of the weights after :meth:`optimize_for_inference`; None for a trainable model.
    """

    head: nn.Module
    class_weights: Tensor | None
    LOSSES: ClassVar[tuple[str, ...]]

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.transform = Transform(config)
        self.register_buffer("class_weights", class_weights(config), persistent=False)
        self.backbone = _build_pyramid(config)
        self.inference_dtype: torch.dtype | None = None
        self._compiled_losses: Callable[[Tensor, Any], dict[str, Tensor]] | None = None
        self._compiled_network: Callable[[Tensor], tuple[list[Tensor], ...]] | None = None

    @property
    def title(self) -> str:
        """Detector and backbone, for people: ``FCOS on resnet50``."""
        return f"{type(self).__name__} on {self.config.backbone}"

    def assign(self, batch: ImageBatch, gt: GroundTruth) -> Any:
        """The targets of a batch; their ``totals``, a tensor, are all-reduced over the processes."""
        raise NotImplementedError

    def losses(self, images: Tensor, targets: Any, reduction: dist.Work | None = None) -> dict[str, Tensor]:
        """Run the network and compute its losses; ``torch.compile(fullgraph=True)`` makes one graph of it.

        Args:
            images: (B, 3, H, W), normalized and padded.
            targets: output of :meth:`assign`.
            reduction: pending all-reduce of ``targets.totals``; waited for before they are read.
        """
        raise NotImplementedError

    def postprocess(self, outputs: Any, batch: ImageBatch) -> list[dict[str, Tensor]]:
        """The detections of each image of ``batch``, in pixels of the resized image.

        The boxes follow the convention that the network learns, see ``DetectorConfig.inclusive_targets``.
        """
        raise NotImplementedError

    def forward(
        self,
        images: Sequence[Tensor] | ImageBatch,
        targets: Sequence[dict[str, Tensor]] | GroundTruth | AssignedTargets | None = None,
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training mode, detections in evaluation mode.

        Raises:
            ValueError, TypeError: invalid images or targets; the message names the element and what is expected.
        """
        device = self.transform.mean.device
        if isinstance(images, ImageBatch):
            if isinstance(targets, AssignedTargets):
                return self._losses_of(self.transform.normalize(images), targets)
            gt = check_packed(images, targets, self.training, device)
            return self._losses(self.transform.normalize(images), gt)
        check_images(images, device)
        if self.training:
            checked = check_targets(targets, len(images), self.config.num_classes, device)
            return self._losses(*self._pack(images, checked))
        return self._detect(images)

    def _pack(
        self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]]
    ) -> tuple[ImageBatch, GroundTruth]:
        resized = [self.transform(image) for image in images]
        learned = [
            learned_target(target, image_size(image), image_size(small), self.config)
            for target, image, small in zip(targets, images, resized, strict=True)
        ]
        boxes, labels = ([target[name] for target in learned] for name in ("boxes", "labels"))
        return self.transform.batch(resized), GroundTruth.pack(boxes, labels)

    def assign_batch(self, images: ImageBatch, gt: GroundTruth) -> AssignedTargets:
        """The targets of a batch of :class:`BatchPacker`, with which the model can be called instead of ``gt``.

        Their totals, which normalize the losses, are being summed over the processes.

        Raises:
            ValueError, TypeError: as :meth:`forward`.
        """
        return self._assigned(images, check_packed(images, gt, self.training, self.transform.mean.device))

    def loss_floors(self, targets: Any) -> dict[str, Tensor]:
        """The lower bound of each loss that cannot reach 0, by name: float32 scalars on the device.

        Args:
            targets: output of :meth:`assign` for a batch whose losses were just computed.
        """
        return {}

    def _assigned(self, batch: ImageBatch, gt: GroundTruth) -> AssignedTargets:
        targets = self.assign(batch, gt)
        return AssignedTargets(targets, self._sum_totals(targets))  # overlaps with the forward pass

    def _losses(self, batch: ImageBatch, gt: GroundTruth) -> dict[str, Tensor]:
        return self._losses_of(batch, self._assigned(batch, gt))

    def _losses_of(self, batch: ImageBatch, assigned: AssignedTargets) -> dict[str, Tensor]:
        targets, reduction = assigned.targets, assigned.reduction
        if self._compiled_losses is None:
            losses = self.losses(batch.tensor, targets, reduction)
        else:
            if reduction is not None:
                reduction.wait()
            losses = self._compiled_losses(batch.tensor, targets)
        if assigned.parts > 1 and getattr(self.config, "normalizer", None) == "image":
            # a mean over the images of the part, not a sum divided by the totals of the batch
            return {name: loss / assigned.parts for name, loss in losses.items()}
        return losses

    def compile_losses(self) -> None:
        """Compute network and losses in one graph of ``torch.compile``.

        Assignment is not compiled. The graph is compiled for the first image size, and again for any size when a
        second one comes. It belongs to this object: copies run without it.
        """
        self._compiled_losses = torch.compile(self.losses, fullgraph=True)

    def _sum_totals(self, targets: Any) -> dist.Work | None:
        """Start the all-reduce of the totals."""
        return dist.all_reduce(targets.totals, async_op=True) if self._shares_totals() else None

    def _shares_totals(self) -> bool:
        """Whether the normalizers are all-reduced over several processes."""
        return self.config.average_totals and dist.is_available() and dist.is_initialized()

    @torch.no_grad()
    def _detect(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        resized = [self.transform(image) for image in images]
        detections: list[dict[str, Tensor]] = [{} for _ in images]
        for indices in self.transform.groups(resized):
            batch = self.transform.batch([resized[i] for i in indices])
            found = self.postprocess(self.network(batch.tensor), batch)
            for i, detection in zip(indices, found, strict=True):
                detections[i] = self._finish(detection, image_size(resized[i]), image_size(images[i]))
        return detections

    def _finish(self, detection: dict[str, Tensor], size: Size, original: Size) -> dict[str, Tensor]:
        """Scale detections of an image of ``size`` to the ``original`` size, and convert the convention of boxes."""
        boxes = scale_boxes(detection["boxes"], size, original)
        if self.config.inclusive_targets:
            # In an enlarged image, the last pixel plus one can exceed the edge of the original.
            height, width = original
            x1, y1, x2, y2 = boxes.unbind(1)
            boxes = torch.stack((x1, y1, (x2 + 1).clamp(max=width), (y2 + 1).clamp(max=height)), dim=1)
        detection = detection | {"boxes": boxes}
        if self.config.drop_empty == "at_end":
            kept = has_area(boxes)
            detection = {name: values[kept] for name, values in detection.items()}
        return detection

    def network(self, x: Tensor) -> tuple[list[Tensor], ...]:
        """Normalized, padded images (B, 3, H, W) to the outputs of the head."""
        return self._network(x) if self._compiled_network is None else self._compiled_network(x)

    def _network(self, x: Tensor) -> tuple[list[Tensor], ...]:
        if self.inference_dtype is None:
            return self.head(self.backbone(x))
        with torch.autocast(x.device.type, enabled=False):  # every layer has its dtype already
            return self.head(self.backbone(x.to(self.inference_dtype)))

    def optimize_for_inference(self, precision: Precision = "auto", compile: bool = False) -> Self:
        """A faster, inference-only copy of this model; this model does not change.

        Batch norms, plain and frozen, are folded into the convolutions. Weights are channels-last and in the chosen
        precision, so the forward pass has no norms of the backbone and no type conversions. Call ``.to(device)`` first:
        the precision depends on the device. On a CPU, convolutions keep copies of their weights in the form that is
        fastest for an image size, from the first batch on: up to five, and for Winograd's method, which large 3x3
        convolutions use in float32, one four times as large. Detections differ by rounding only: boxes by a small
        fraction of a pixel in float32, and as under autocast in bfloat16; detections with a score that close to a
        threshold can appear or disappear.

        The copy cannot be trained and has a different state dict, with a bias in place of each norm.

        Args:
            precision: precision of weights and activations; ``auto`` is bfloat16 on devices with fast bfloat16, else
                float32. Pixel values, norms of the head and post-processing are always float32.
            compile: run the network through ``torch.compile``, which fuses ReLU and addition into the convolutions.
                Meant for one image size, or few: each new shape compiles again, for up to minutes, and from the ninth
                shape on torch runs without compiling.

        Raises:
            RuntimeError: this model is such a copy already.
        """
        if self.inference_dtype is not None:
            raise RuntimeError(f"{_FOR_INFERENCE}; optimize the original model instead")
        model = copy.deepcopy(self).eval().requires_grad_(False)
        device = self.transform.mean.device
        model.inference_dtype, _ = choose_precision(precision, device)
        fold_batch_norms(model.backbone, conv_norm_pairs(model.backbone))
        _lower_precision(model, model.inference_dtype)
        if compile:
            # Not dynamic: a network compiled for any size is slower than without compiling.
            model._compiled_network = torch.compile(model._network, dynamic=False, options={"freezing": True})
        elif device.type == "cpu":
            use_inference_convolutions(model)
        return model

    def train(self, mode: bool = True) -> Self:
        """As ``nn.Module.train``.

        Raises:
            RuntimeError: the model was made by :meth:`optimize_for_inference`.
        """
        if mode and self.inference_dtype is not None:
            raise RuntimeError(f"{_FOR_INFERENCE}; train the original model instead")
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        # Compiled functions are bound to this object: a copy would run with the original's weights.
        return {**vars(self), "_compiled_losses": None, "_compiled_network": None}

    def feature_sizes(self, size: Size) -> list[Size]:
        """(height, width) of each level's feature maps of a padded image, known before the network runs."""
        height, width = size
        # not math.ceil, nor -(-x // n): symbolic sizes in torch.export and ONNX divide non-negative integers
        return [
            ((height + stride - 1) // stride, (width + stride - 1) // stride)
            for stride in self.config.strides
        ]


def _build_pyramid(config: DetectorConfig) -> BackboneWithFPN:
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    options = {name: values[name] for name in values.keys() & backbone_options(config.backbone)}
    body = build_backbone(config.backbone, config.trainable_stages, **options)
    fpn = FPN(
        body.out_channels[config.min_level - 2 :],
        config.fpn_channels,
        config.p6_from,
        config.max_level - 5,
        config.fpn_norm,
        config.fpn_relu,
        config.fpn_upsampling,
    )
    return BackboneWithFPN(body, fpn)


def _lower_precision(model: nn.Module, dtype: torch.dtype) -> None:
    """Make ``model`` compute in ``dtype`` and channels-last.

    Norms of the head, batch norms that were not folded, and deformable convolutions accept 16-bit activations and keep
    float32 parameters.
    """
    done: set[nn.Module] = set()
    for part in model.modules():
        if isinstance(part, TimmBackbone):
            _convert(part, dtype)  # layers and parameters of any kind
            for norm in part.modules():
                if isinstance(norm, nn.modules.batchnorm._NormBase):
                    norm.float()
        if isinstance(part, (TimmBackbone, DeformConv2d)):
            done.update(part.modules())
        is_lowered = isinstance(part, (nn.Conv2d, nn.GroupNorm)) and not isinstance(part, GroupNormReLU)
        if is_lowered and part not in done:  # modules() yields parents first
            _convert(part, dtype)


def _convert(module: nn.Module, dtype: torch.dtype) -> None:
    module.to(dtype=dtype)
    module.to(memory_format=torch.channels_last)
