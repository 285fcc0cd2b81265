"""Datasets: reading, checking, generating, augmenting and batching them. Needs the extra ``train``.

Names are imported on first use: the command line needs ``AugmentConfig`` without torch.
"""

from typing import TYPE_CHECKING

from fcos_fast._lazy import lazy_names

if TYPE_CHECKING:
    from .augment import AugmentConfig as AugmentConfig
    from .categories import COCO as COCO
    from .categories import VOC as VOC
    from .categories import Categories as Categories
    from .checks import IMAGE_SUFFIXES as IMAGE_SUFFIXES
    from .checks import MAX_PIXELS as MAX_PIXELS
    from .checks import DataError as DataError
    from .checks import Report as Report
    from .coco import load_coco as load_coco
    from .conversion import convert as convert
    from .dataset import DetectionDataset as DetectionDataset
    from .loader import EpochBatchSampler as EpochBatchSampler
    from .loader import collate as collate
    from .loader import eval_loader as eval_loader
    from .loader import train_loader as train_loader
    from .readers import READERS as READERS
    from .readers import Reader as Reader
    from .readers import dataset_splits as dataset_splits
    from .readers import load_dataset as load_dataset
    from .records import Record as Record
    from .synthetic import SyntheticConfig as SyntheticConfig
    from .synthetic import synthetic_dataset as synthetic_dataset
    from .synthetic import synthetic_image as synthetic_image
    from .synthetic import write_voc as write_voc
    from .tensors import read_image as read_image
    from .transforms import AugmentedDataset as AugmentedDataset
    from .voc import load_voc as load_voc
    from .yolo import load_yolo as load_yolo
else:
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        {
            "augment": ["AugmentConfig"],
            "categories": ["COCO", "VOC", "Categories"],
            "checks": ["DataError", "IMAGE_SUFFIXES", "MAX_PIXELS", "Report"],
            "coco": ["load_coco"],
            "conversion": ["convert"],
            "dataset": ["DetectionDataset"],
            "loader": ["EpochBatchSampler", "collate", "eval_loader", "train_loader"],
            "readers": ["READERS", "Reader", "dataset_splits", "load_dataset"],
            "records": ["Record"],
            "synthetic": ["SyntheticConfig", "synthetic_image", "synthetic_dataset", "write_voc"],
            "tensors": ["read_image"],
            "transforms": ["AugmentedDataset"],
            "voc": ["load_voc"],
            "yolo": ["load_yolo"],
        },
    )
