"""``fcos-fast data show``: images with their labels on one sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fcos_fast.cli.train import TrainOptions, parse_with_model
from fcos_fast.fields import check_fields, checked

COMMON = (
    *("data.root", "data.train", "output", "images", "classes", "augmented", "seed", "augment.size"),
    "config",
)
"""Options that the help lists first."""


@dataclass(frozen=True)
class ShowOptions(TrainOptions):
    """Draw images of the training split with their labels on one sheet. Accepts all options of ``fcos-fast train``.

      fcos-fast data show --data.root FOLDER
      fcos-fast data show --config small --data.root FOLDER --augmented true

    Attributes:
        output: image file for the sheet.
        images: number of images, chosen at random; by default 16, or 4 with ``augmented``.
        classes: show only images with a box of one of these classes, for example ``[cat,dog]``.
        augmented: show each image as it is and as training sees it in its first epochs.
        seed: seed of the choice.
    """

    output: str = "sheet.png"
    images: int | None = checked(None, lambda n: n is None or n > 0, "a positive integer or None")
    classes: tuple[str, ...] | None = None
    augmented: bool = False
    seed: int = checked(0, lambda n: n >= 0, "an integer of at least 0")

    def __post_init__(self) -> None:
        check_fields(self, "--")


def main(arguments: Sequence[str]) -> int:
    """Run ``fcos-fast data show``."""
    options = parse_with_model(ShowOptions, "data show", arguments, COMMON)
    if not options.data.root:
        raise ValueError("no dataset; give its folder with --data.root")

    from fcos_fast.data import Categories
    from fcos_fast.engine.files import save_image
    from fcos_fast.quality.sheet import augmented_sheet, choose_images, labeled_sheet

    data = options.data
    dataset = data.load(data.train, Categories(data.classes) if data.classes else None)
    count = options.images or (4 if options.augmented else 16)
    images = choose_images(dataset, count, options.classes, options.seed)
    if options.augmented:
        sheet = augmented_sheet(dataset, images, options.augment, options.train.seed)
    else:
        sheet = labeled_sheet(dataset, images)
    save_image(sheet, options.output)
    print(f"sheet    {options.output}")
    return 0
