"""The operators inside other projects' detectors, in place."""
