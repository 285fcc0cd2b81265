"""Folder names, and the table of metrics."""

from __future__ import annotations

from fcos_fast.engine.run_folder import MetricsTable, new_run_folder, read_metrics


def test_folders_count_up(tmp_path):
    parent = tmp_path / "deep" / "runs"
    assert [new_run_folder(parent, "train").name for _ in range(3)] == ["train", "train2", "train3"]
    assert new_run_folder(parent, "detect").name == "detect"
    (parent / "train2").rmdir()
    assert new_run_folder(parent, "train").name == "train2"


def test_table_grows_by_rows_and_columns(tmp_path):
    path = tmp_path / "metrics.csv"
    table = MetricsTable(path)
    table.append({"epoch": 1, "loss": 0.5})
    table.append({"epoch": 2, "loss": 0.25, "ap": 0.125, "ap_large": float("nan")})
    assert path.read_text() == "epoch,loss,ap\n1,0.5,\n2,0.25,0.125\n"
    assert read_metrics(path) == [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25, "ap": 0.125}]


def test_rows_after_the_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "metrics.csv"
    table = MetricsTable(path)
    for epoch in (1, 2, 3):
        table.append({"epoch": epoch, "loss": 1 / epoch})
    resumed = MetricsTable(path, epochs=2)
    resumed.append({"epoch": 3, "loss": 9})
    assert [row["loss"] for row in read_metrics(path)] == [1, 0.5, 9]
    fresh = MetricsTable(path)
    fresh.append({"epoch": 1, "loss": 7})
    assert read_metrics(path) == [{"epoch": 1, "loss": 7}]
