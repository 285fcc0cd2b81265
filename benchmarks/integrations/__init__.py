"""Benchmarks of accelerated detectors of other projects."""
