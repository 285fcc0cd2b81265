"""Data quality: faults of images, labels and splits, found before or after a training (``fcos-fast data check``)."""
