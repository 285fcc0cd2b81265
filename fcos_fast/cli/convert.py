"""``fcos-fast convert``: checkpoints from and to other implementations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcos_fast.cli.options import parse_options
from fcos_fast.data import COCO, VOC, Categories
from fcos_fast.text import printable

CLASSES = {"coco": COCO, "voc": VOC}


@dataclass(frozen=True)
class ConvertOptions:
    """Convert a checkpoint of another FCOS implementation into one of fcos_fast, or back.

      fcos-fast convert --checkpoint FCOS_imprv_R_50_FPN_1x.pth --output fcos.pt
      fcos-fast convert --checkpoint runs/train/best.pt --to mmdetection --output mmdetection.pth

    Attributes:
        checkpoint: checkpoint of official FCOS, AdelaiDet, detectron2, torchvision, mmdetection, SimpleAICV,
            FCOS.Pytorch or fcos-pytorch, recognized by its parameter names; with ``--to``, also one of fcos_fast.
        output: file to write.
        to: checkpoint format to write: official, adelaidet, detectron2, torchvision, torchvision-retinanet,
            mmdetection, simpleaicv, notebook (FCOS.Pytorch) or bubbliiiing (fcos-pytorch); by default fcos_fast.
        preset: preset of the checkpoint, if its parameter names fit several; by default the first that fits.
        model: ``model`` options that differ from the preset, such as ``"{dcn: v2}"``.
        classes: class names: ``coco``, ``voc``, a text file with a name per line, or names separated by commas. By
            default COCO's for 80 classes and VOC's for 20.
    """

    checkpoint: str
    output: str
    to: str | None = None
    preset: str | None = None
    model: dict[str, Any] | None = None
    classes: str | None = None


def main(arguments: Sequence[str]) -> int:
    """Run ``fcos-fast convert``."""
    options = parse_options(ConvertOptions, "convert", arguments)

    from fcos_fast.engine.checkpoint import model_from_checkpoint, read_checkpoint, save_checkpoint, save_file
    from fcos_fast.engine.foreign import other_rules, write_foreign
    from fcos_fast.models import FCOSConfig
    from fcos_fast.models.checkpoint_formats import find_format

    format = None if options.to is None else find_format(options.to)
    state, origin = read_checkpoint(options.checkpoint, options.preset, options.model)
    print(f"{options.checkpoint}: {origin}")
    if options.classes is not None:
        state["categories"] = _categories(options.classes, state["model_config"]["num_classes"]).to_dict()
    model, categories = model_from_checkpoint(state)
    Path(options.output).parent.mkdir(parents=True, exist_ok=True)
    if format is None:
        kept = {name: state[name] for name in ("model_config", "categories")}
        save_checkpoint(options.output, {**kept, "model": model.state_dict()})
        names = ", ".join(categories.names[:3]) + (", ..." if len(categories) > 3 else "")
        print(f"{options.output}: {len(categories)} classes ({printable(names)})\n\n{model.config}")
        return 0
    theirs = write_foreign(model.config, model.state_dict(), format)
    assert isinstance(model.config, FCOSConfig)  # write_foreign rejects other detectors
    save_file(options.output, theirs)
    print(
        f"{options.output}: {format.name} checkpoint of {sum(p.numel() for p in model.parameters()):,} parameters"
    )
    for name, (here, there) in other_rules(model.config, format).items():
        print(f"  {name} is {here} here and {there} there")
    return 0


def _categories(classes: str, num_classes: int) -> Categories:
    categories = CLASSES.get(classes)
    if categories is None:
        is_file = Path(classes).is_file()
        names = Path(classes).read_text(encoding="utf-8").splitlines() if is_file else classes.split(",")
        categories = Categories(tuple(name.strip() for name in names if name.strip()))
    if len(categories) != num_classes:
        raise ValueError(
            f"--classes {classes}: got {len(categories)} names; the checkpoint has {num_classes} classes"
        )
    return categories
