"""Data sets: reading, checking, generating, augmenting and batching them. Needs the extra ``train``.

Names are imported when they are first used: ``AugmentConfig``, of which the command line makes its options, needs no
torch.
"""

from fcos_fast._lazy import lazy_names

_FILES = {
    "augment": ("AugmentConfig",),
    "categories": ("COCO", "VOC", "Categories"),
    "checks": ("DataError", "IMAGE_SUFFIXES", "MAX_PIXELS", "Report"),
    "coco": ("load_coco",),
    "dataset": ("DetectionDataset", "Record"),
    "images": ("read_image",),
    "loader": ("EpochBatchSampler", "collate", "eval_loader", "train_loader"),
    "readers": ("READERS", "Reader", "load_dataset"),
    "synthetic": ("SyntheticConfig", "synthetic_image", "synthetic_dataset", "write_voc"),
    "transforms": ("AugmentedDataset",),
    "voc": ("load_voc",),
    "yolo": ("load_yolo",),
}
__getattr__, __dir__, __all__ = lazy_names(__name__, _FILES)
