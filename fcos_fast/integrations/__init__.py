"""Acceleration of other projects' detectors, in place."""
