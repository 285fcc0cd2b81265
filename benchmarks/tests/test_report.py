"""Tables of results: what they show, and that the committed ones are up to date."""

from __future__ import annotations

import json

import pytest

from benchmarks import report
from benchmarks.rows import OURS
from tests.tree import ROOT

MACHINE = {
    "cpu": "EPYC",
    "simd": "avx2",
    "gpu": None,
    "threads": 2,
    "torch": "2.10",
    "commit": "0123456789abcdef",
}
DOCUMENTS = sorted(
    path.relative_to(ROOT)
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/**/*.md")
    for path in ROOT.glob(pattern)
    if report.MARKER.search(path.read_text())
)


def row(operator: str, case: str, name: str, p50: float, peer_p50: float) -> report.Result:
    return {
        **{"operator": operator, "case": case, "device": "cpu", "peer": "torchvision", "row": name},
        **{"p20_ms": p50 - 1, "p50_ms": p50, "p80_ms": p50 + 1, "times_faster_than_peer": peer_p50 / p50},
    }


def case(operator: str, case: str, peer: float, ours: float) -> list[report.Result]:
    rows = {"torchvision": peer, OURS: ours, "floor: copy": 2.0}
    return [row(operator, case, name, p50, peer) for name, p50 in rows.items()]


RESULTS = [
    *case("nms", "few", 40, 10),
    *case("nms", "many", 1000, 10),
    *case("nms", "some", 80, 10),
    *case("focal_loss", "dense", 20, 10),
    *case("centerness", "all", 30, 10),
]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"machine": MACHINE, "results": RESULTS}))
    return path


@pytest.mark.parametrize("path", DOCUMENTS, ids=str)
def test_committed_tables_are_what_the_program_writes(path):
    text = (ROOT / path).read_text()
    assert report.updated(text) == text, f"run python -m benchmarks.report --update {path}"


def test_there_are_committed_tables():
    assert DOCUMENTS


def test_one_line_per_case():
    lines = report.comparison_table(report.comparisons(RESULTS)).splitlines()
    assert len(lines) == 2 + 5
    assert lines[1] == "|---|---|--:|--:|--:|"
    assert lines[2] == "| `nms` few | torchvision | 39 / 40 / 41 | 9 / 10 / 11 | 4 |"


def test_the_floor_is_a_column():
    lines = report.comparison_table(report.comparisons(RESULTS), with_floor=True).splitlines()
    assert lines[0].endswith("| copy, p50 ms |")
    assert lines[2] == "| `nms` few | torchvision | 39 / 40 / 41 | 9 / 10 / 11 | 4 | 2 |"


def test_cases_without_our_row_or_its_peer_are_skipped():
    failed = {key: value for key, value in RESULTS[0].items() if not key.startswith(("p20", "p50", "p80"))}
    assert report.comparisons([failed | {"error": "RuntimeError"}, *RESULTS[1:3]]) == []
    assert report.comparisons(RESULTS[:1]) == []


def test_the_summary_has_the_best_the_median_and_the_worst_operator():
    chosen = report.summary(report.comparisons(RESULTS))
    titles = [(c["ours"]["operator"], c["ours"]["case"], report.ratio(c)) for c in chosen]
    assert titles == [("nms", "some", 8), ("centerness", "all", 3), ("focal_loss", "dense", 2)]


def test_long_times_are_in_seconds():
    results = case("inference", "FCOS", 5000, 2500)
    table = report.comparison_table(report.comparisons(results))
    assert "p20 / p50 / p80 s" in table
    assert "| 5 / 5 / 5 | 2.5 / 2.5 / 2.5 | 2 |" in table


def test_text_between_markers_is_replaced_and_the_rest_kept(file):
    start, end = f"<!-- table: python -m benchmarks.report {file} -->", "<!-- end of table -->"
    text = report.updated(f"before\n\n{start}\nold\n{end}\n\nafter\n")
    assert "old" not in text
    assert text.startswith(f"before\n\n{start}\n| work | peer |")
    assert text.endswith(f"|\n{end}\n\nafter\n")
    assert report.updated(text) == text


def test_details_name_the_machine(file):
    text = report.generate(report.parser().parse_args(["--details", "--summary", str(file)]))
    assert text.startswith("EPYC (avx2), 2 threads, torch 2.10, commit 0123456789ab:\n\n| work | peer |")
    assert len(text.splitlines()) == 2 + 2 + 3
