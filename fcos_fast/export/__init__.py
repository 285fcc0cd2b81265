"""Trained detectors as files for other runtimes."""
