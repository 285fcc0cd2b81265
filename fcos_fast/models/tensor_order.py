"""Tensors of a state dict with other names, matched by their order."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

_COUNTER = "num_batches_tracked"  # not in every file


def in_order(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor], model: str) -> dict[str, Tensor]:
    """``tensors`` under the names of ``like``, the first under the first name and so on.

    Counters of batches are ignored, and so are tensors after the last one of ``like``, such as a classifier.

    Args:
        tensors: state dict of another implementation of the model, whose layers are in the same order.
        like: state dict of this implementation.
        model: name of the model, for messages.

    Raises:
        ValueError: a tensor is missing or has another shape; the message names it.
    """
    names = [name for name in like if not name.endswith(_COUNTER)]
    given = [(name, value) for name, value in tensors.items() if not name.endswith(_COUNTER)]
    if len(given) < len(names):
        raise ValueError(f"{model} has {len(names)} tensors; got {len(given)}")
    for key, (name, value) in zip(names, given, strict=False):
        if value.shape != like[key].shape:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}; expected {tuple(like[key].shape)}, the shape of {key}: "
                f"the tensors are read in the order of {model}'s layers"
            )
    return {key: value for key, (_, value) in zip(names, given, strict=False)}
