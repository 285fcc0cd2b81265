"""Timings of the operators beside their peers; see README.md."""
