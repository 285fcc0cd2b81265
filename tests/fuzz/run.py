"""Searches for failing cases on one instruction set; ``python -m tests.fuzz`` starts several of these processes.

Cases that failed before are in found.json and are always replayed first.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

import torch  # noqa: F401  # loads the libraries of _C
from hypothesis import HealthCheck, given, seed, settings

from fcos_fast import _C
from tests.fuzz.operators import OPERATORS, Case, run_case

FOUND = Path(__file__).with_name("found.json")
AT_ONCE = 100  # cases per operator and round


def found_cases() -> list[tuple[str, Case]]:
    """(operator, case) of all known failures."""
    return [(entry["operator"], as_case(entry["case"])) for entry in json.loads(FOUND.read_text())]


def as_case(value: object) -> object:
    """Convert the lists of JSON back to tuples."""
    if isinstance(value, dict):
        return {name: as_case(part) for name, part in value.items()}
    return tuple(map(as_case, value)) if isinstance(value, list) else value


def search(operator: str, examples: int, start: int | None, counts: Counter) -> Case | None:
    """The smallest failing case, or None. Without ``start``, the cases are the same in every run."""
    failing: list[Case] = []

    def check(case: Case) -> None:
        counts[operator] += 1
        try:
            run_case(operator, case)
        except BaseException:
            failing.append(case)
            raise

    test = given(OPERATORS[operator].cases)(check)
    options = {"max_examples": examples, "deadline": None, "database": None}
    test = settings(**options, derandomize=start is None, suppress_health_check=list(HealthCheck))(test)
    try:
        (test if start is None else seed(start)(test))()
    except Exception:
        traceback.print_exc()
        return failing[-1]  # the last one that hypothesis tries is the smallest
    return None


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, help="search this long")
    parser.add_argument(
        "--examples", type=int, help="instead: so many cases of each operator, the same every time"
    )
    parser.add_argument("--start", type=int, default=0)
    options = parser.parse_args()
    counts: Counter = Counter()
    failures = []
    for operator, case in found_cases():
        try:
            run_case(operator, case)
        except Exception:
            traceback.print_exc()
            failures.append({"operator": operator, "simd": _C.simd(), "case": case})
    began, start = time.monotonic(), options.start
    while True:
        for operator in OPERATORS:
            case = search(operator, options.examples or AT_ONCE, None if options.examples else start, counts)
            if case is not None:
                failures.append({"operator": operator, "simd": _C.simd(), "case": case})
        start += 1
        if failures or options.examples or time.monotonic() - began > options.seconds:
            break
    print(json.dumps({"simd": _C.simd(), "counts": counts, "failures": failures}))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
