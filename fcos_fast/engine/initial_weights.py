"""The weights that a new run starts from: ``train.weights``."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

from fcos_fast.data import Categories
from fcos_fast.engine.checkpoint import is_detector, load_weights
from fcos_fast.engine.distributed import is_main
from fcos_fast.models import Detector
from fcos_fast.models.config import NUM_STAGES, TIMM_PREFIX, DetectorConfig
from fcos_fast.models.downloads import default_weights, normalization
from fcos_fast.models.pretrained import is_name, load_pretrained
from fcos_fast.models.resnet import Bottleneck
from fcos_fast.text import printable

AUTO, NONE = "auto", "none"


def load_initial_weights(model: Detector, source: str, categories: Categories) -> None:
    """Load the weights that ``train.weights`` names into ``model``, and print in one line what they are.

    Args:
        model: changed in place; its random weights stay wherever others do not fit.
        source: ``auto``, ``none``, a file or the name of published weights; see ``TrainConfig.weights``.
        categories: classes of ``model``.

    Raises:
        FileNotFoundError, ValueError, ConnectionError, ModuleNotFoundError: as
            :func:`fcos_fast.models.pretrained.load_pretrained` and :func:`fcos_fast.engine.checkpoint.load_weights`.
            ``auto`` keeps random weights instead if none fit or the download fails.
    """
    if source == NONE:
        _say_random(model.config)
    elif source == AUTO:
        _load_default(model)
    elif Path(source).is_file() and is_detector(source):
        _say(load_weights(model, source, categories))
    elif Path(source).is_file() or is_name(source) or source == TIMM_PREFIX.removesuffix(":"):
        load_pretrained(model.backbone.body, source)
        doubt = _unfit_images(model.config, source) if is_name(source) else ""
        _say(f"{source}, for the backbone{doubt and f'; but {doubt}'}")
    else:
        raise FileNotFoundError(
            f"train.weights {source}: no such file; expected auto, none, a checkpoint, a file of a backbone's weights, "
            "or a name such as ResNet50_Weights.IMAGENET1K_V1 (torchvision) or timm:resnet50.a1_in1k"
        )


def _load_default(model: Detector) -> None:
    name = default_weights(model.config.backbone)
    reason = _unfit(model, name)
    if name is None or reason:
        _say_random(model.config, reason)
        return
    try:
        load_pretrained(model.backbone.body, name)
    except ConnectionError as error:
        _say_random(model.config, f"{error} with --weights")
        return
    _say(f"{name}, for the backbone; --weights none starts from random weights")


def _unfit(model: Detector, name: str | None) -> str:
    """Why the published weights do not fit the model, and what to do; empty if they do."""
    config = model.config
    if name is None:
        return (
            f"neither torchvision nor timm has weights of {config.backbone}; for others give --weights FILE"
        )
    if config.norm == "group":
        return f"{name} has batch norms; for it give --model.norm batch or frozen"
    if config.dcn != "none":
        return f"{name} has no deformable convolutions; for it give --model.dcn none"
    if images := _unfit_images(config, name):
        return f"{images}; give these, or --size, or --weights FILE with weights for the images of the model"
    if config.stride_in_1x1 and any(isinstance(module, Bottleneck) for module in model.modules()):
        return f"{name} has its strides in the 3x3 convolutions; for it give --model.stride_in_1x1 false"
    return ""


def _unfit_images(config: DetectorConfig, name: str) -> str:
    """How the images for the weights are to be normalized, if the model does so otherwise."""
    expected = tuple(chain(*normalization(name)))
    values = chain(config.image_mean, config.image_std)
    is_near = all(abs(x / config.pixel_range - y) < 1e-3 for x, y in zip(values, expected, strict=True))
    if config.channel_order == "rgb" and is_near:
        return ""
    mean, std = (list(values) for values in normalization(name))
    return (
        f"{name} is for images with --model.channel_order rgb --model.pixel_range 1 --model.image_mean "
        f'"{mean}" --model.image_std "{std}"'
    )


def _say_random(config: DetectorConfig, reason: str = "") -> None:
    frozen = config.norm == "frozen" or config.trainable_stages < NUM_STAGES
    advice = "they do not suit frozen layers: give --model.norm batch --model.trainable_stages 5"
    _say("; ".join(filter(None, [f"random{reason and f', because {reason}'}", advice if frozen else ""])))


def _say(weights: str) -> None:
    if is_main():
        print(f"weights: {printable(weights)}", flush=True)
