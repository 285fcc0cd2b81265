"""``fcos-fast detect``: every kind of source, and every file that it writes."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcos_fast.cli import detect_run
from fcos_fast.cli.main import main
from fcos_fast.inference import Predictor, load
from fcos_fast.visualize import class_color
from tests.inference.engines import ColorEngine, canvas
from tests.inference.media import write_frames

RED, GREEN = ("red", (10, 20, 42, 40)), ("green", (50, 8, 58, 60))


@pytest.fixture
def color_engine(monkeypatch, tmp_path) -> ColorEngine:
    """``fcos-fast detect`` finds red and green boxes, and works in a folder of its own."""
    engine = ColorEngine()
    monkeypatch.setattr(detect_run, "load", lambda *_, **__: Predictor(engine))
    monkeypatch.chdir(tmp_path)
    return engine


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(canvas(64, 96, RED, GREEN)).save(folder / "000012.png")
    Image.fromarray(canvas(64, 96)).save(folder / "nothing.png")
    return folder


def detect(*arguments: str | Path) -> Path:
    assert main(["detect", "--checkpoint", "x.pt", *map(str, arguments)]) == 0
    return max(Path("runs").iterdir(), key=lambda folder: folder.stat().st_mtime_ns)


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_files_of_a_folder(color_engine, photos):
    saved = [word for name in ("txt", "json", "crops") for word in (f"--save_{name}", "true")]
    folder = detect(photos, *saved, "--batch_size", "2", "--score_threshold", "0.2")
    assert color_engine.batches == [2]
    assert files_in(folder) == {
        *(
            "000012.png",
            "nothing.png",
            "detections.json",
            "results.json",
            "labels/000012.txt",
            "labels/nothing.txt",
        ),
        *("crops/red/000012_0.png", "crops/green/000012_1.png"),
    }
    first, second = json.loads((folder / "detections.json").read_text())
    assert first["image"] == str(photos / "000012.png")
    assert [(d["class"], d["box"]) for d in first["detections"]] == [
        ("red", [10, 20, 42, 40]),
        ("green", [50, 8, 58, 60]),
    ]
    assert second == {
        "image": str(photos / "nothing.png"),
        "width": 96,
        "height": 64,
        "drawn": "nothing.png",
        "detections": [],
    }
    results = json.loads((folder / "results.json").read_text())
    assert [(r["image_id"], r["category_id"], r["bbox"]) for r in results] == [
        (12, 1, [10, 20, 32, 20]),
        (12, 2, [50, 8, 8, 52]),
    ]
    rows = np.loadtxt(folder / "labels/000012.txt")
    assert np.allclose(
        rows[:, :5] * (1, 96, 64, 96, 64), [[0, 26, 30, 32, 20], [1, 54, 34, 8, 52]], atol=1e-3
    )
    assert np.array_equal(
        np.asarray(Image.open(folder / "crops/green/000012_1.png")), canvas(52, 8, ("green", (0, 0, 8, 52)))
    )


def test_classes_thresholds_and_nothing_drawn(color_engine, photos, capsys):
    scores = {"red": 640 / 1640, "green": 416 / 1416}  # 0.39, 0.29

    def classes(*arguments):
        folder = detect(photos / "000012.png", "--draw", "false", *arguments)
        assert files_in(folder) == {"detections.json"}
        return [d["class"] for d in json.loads((folder / "detections.json").read_text())[0]["detections"]]

    assert scores["green"] < 0.3 < scores["red"]
    assert classes() == ["red"]
    assert classes("--score_threshold", "0.2") == ["red", "green"]
    assert classes("--score_threshold", "0.2", "--classes", "[green]") == ["green"]
    assert classes("--score_threshold", "{green: 0.25}") == ["red", "green"]
    assert classes("--score_threshold", "{green: 0.25, red: 0.5}") == ["green"]
    assert main(["detect", "--checkpoint", "x.pt", str(photos), "--classes", "[gren]"]) == 2
    assert "unknown class 'gren'; did you mean 'green'" in capsys.readouterr().err
    assert main(["detect", "--checkpoint", "x.pt", str(photos), "--score_threshold", "{blue: 0.1}"]) == 2
    assert "unknown class 'blue'" in capsys.readouterr().err
    assert len(list(Path("runs").iterdir())) == 5  # nothing is begun before the options are right


@pytest.mark.parametrize("rate", [Fraction(30000, 1001), Fraction(10)], ids=str)
def test_video_drawn_at_its_rate(color_engine, tmp_path, rate):
    av = pytest.importorskip("av")
    film = write_frames(tmp_path / "film.mp4", (canvas(63, 95, RED) for _ in range(12)), rate)
    folder = detect(film, film, "--save_txt", "true", "--save_json", "true")
    labels = {f"labels/{name}/{i:06d}.txt" for name in ("film", "film_2") for i in range(12)}
    assert files_in(folder) == {"film.mp4", "film_2.mp4", "detections.json", "results.json"} | labels
    with av.open(str(film)) as before, av.open(str(folder / "film_2.mp4")) as after:
        assert after.streams.video[0].average_rate == before.streams.video[0].average_rate == rate
        frames = [list(container.decode(video=0)) for container in (before, after)]
    assert [frame.time for frame in frames[1]] == pytest.approx([frame.time for frame in frames[0]], abs=1e-4)
    drawn = frames[1][-1].to_ndarray(format="rgb24").astype(int)
    assert drawn.shape == (64, 96, 3)  # H.264 needs even sides
    assert class_color(0)[2] == 255
    assert drawn[14, 30, 2] > 180  # the blue label above the red box on gray
    entries = json.loads((folder / "detections.json").read_text())
    assert [entry["frame"] for entry in entries] == [*range(12), *range(12)]
    assert entries[11]["time"] == pytest.approx(11 / float(rate), abs=1e-4)
    assert entries[23]["drawn"] == "film_2.mp4"
    assert {r["image_id"] for r in json.loads((folder / "results.json").read_text())} >= {
        "film/000000",
        "film_2/000011",
    }


def test_names_are_never_used_twice(color_engine, tmp_path):
    for path in ("a/1.png", "b/1.png", "b/01.png", "b/1_2.png"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        Image.fromarray(canvas(64, 96, RED)).save(path)
    folder = detect("a/*", "b", "--save_json", "true", "--save_txt", "true")
    assert {name for name in files_in(folder) if name.endswith("png")} == {
        "1.png",
        "01_2.png",
        "1_2.png",
        "1_2_2.png",
    }
    assert {name for name in files_in(folder) if name.endswith("txt")} == {
        f"labels/{name}.txt" for name in ("1", "01_2", "1_2", "1_2_2")
    }
    ids = [r["image_id"] for r in json.loads((folder / "results.json").read_text())]
    assert len(ids) == len(set(ids)) == 4


def test_crops_stay_in_their_folder(color_engine, photos):
    from fcos_fast.data import Categories

    color_engine.categories = Categories(("../../red", "..."))
    folder = detect(photos / "000012.png", "--save_crops", "true", "--score_threshold", "0.1")
    assert files_in(folder) >= {"crops/_.._red/000012_0.png", "crops/_/000012_1.png"}


def test_ctrl_c_keeps_what_was_found(color_engine, tmp_path, capsys, monkeypatch):
    film = write_frames(tmp_path / "film.mp4", (canvas(64, 96, RED) for _ in range(50)))
    whole = color_engine.detect

    def interrupted(images):
        if len(color_engine.batches) == 7:
            raise KeyboardInterrupt
        return whole(images)

    monkeypatch.setattr(color_engine, "detect", interrupted)
    assert main(["detect", "--checkpoint", "x.pt", str(film)]) == 130
    assert "interrupted; 7 objects in 7 images" in capsys.readouterr().err
    assert len(json.loads(Path("runs/detect/detections.json").read_text())) == 7
    with pytest.importorskip("av").open("runs/detect/film.mp4") as container:
        assert len(list(container.decode(video=0))) == 7


def test_an_error_leaves_no_half_written_files(color_engine, photos, monkeypatch, capsys):
    monkeypatch.setattr(color_engine, "detect", lambda _: (_ for _ in ()).throw(ValueError("broken")))
    assert main(["detect", "--checkpoint", "x.pt", str(photos)]) == 2
    assert "broken" in capsys.readouterr().err
    assert files_in(Path("runs")) == set()


def test_damaged_video_is_reported_after_its_frames(color_engine, tmp_path, photos, capsys):
    (tmp_path / "text.mp4").write_text("not a video")
    assert main(["detect", "--checkpoint", "x.pt", "text.mp4", str(photos)]) == 1
    captured = capsys.readouterr()
    assert "text.mp4: cannot be read (Invalid data found" in captured.err
    assert "1 objects in 2 images" in captured.out


def test_videos_need_an_extra(color_engine, tmp_path, monkeypatch, capsys):
    (tmp_path / "film.mp4").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    assert main(["detect", "--checkpoint", "x.pt", "film.mp4"]) == 2
    assert capsys.readouterr().err == (
        "fcos-fast detect: needs av, which is not installed; pip install 'fcos_fast[video]'\n"
    )


def test_urls_must_be_allowed(color_engine, capsys):
    assert main(["detect", "--checkpoint", "x.pt", "http://127.0.0.1:9/a.png"]) == 2
    assert "URLs are not read unless you allow it: allow_urls=True, or --urls true" in capsys.readouterr().err
    assert main(["detect", "--checkpoint", "x.pt", "http://127.0.0.1:9/a.png", "--urls", "true"]) == 1
    assert "cannot be downloaded" in capsys.readouterr().err


def test_nms_options_change_the_model(checkpoint):
    config = load(checkpoint, "cpu").engine.model.config
    changed = load(
        checkpoint, "cpu", lowest_score=0.01, iou_threshold=0.3, max_detections=7
    ).engine.model.config
    assert (changed.score_threshold, changed.nms_threshold, changed.max_detections) == (0.01, 0.3, 7)
    assert load(checkpoint, "cpu", lowest_score=0.9).engine.model.config == config
    with pytest.raises(ValueError, match=r"nms_threshold=3.0"):
        load(checkpoint, "cpu", iou_threshold=3.0)


def test_nms_options_of_the_command(checkpoint, photos, monkeypatch):
    given = []

    def recorded(*arguments, **options):
        given.append(options)
        return Predictor(ColorEngine())

    monkeypatch.setattr(detect_run, "load", recorded)
    monkeypatch.chdir(photos)
    detect(
        photos,
        "--iou_threshold",
        "0.2",
        "--max_detections",
        "5",
        "--score_threshold",
        "{red: 0.02, green: 0.5}",
    )
    (options,) = given
    assert options.items() >= {"lowest_score": 0.02, "iou_threshold": 0.2, "max_detections": 5}.items()


@pytest.mark.parametrize(
    ("options", "batches"),
    {
        "tiles": (
            ["--tile", "64", "--overlap", "0.5", "--batch_size", "2"],
            [1, 2],
        ),  # the whole image, two tiles
        "mirrored": (["--augment", "true"], [1, 1]),
        "both": (["--augment", "true", "--tile", "64", "--overlap", "0.5"], [1, 1, 1, 1, 1, 1]),
        "scale 1": (["--augment", "[1]"], [1, 1]),
    }.values(),
)
def test_tiles_and_augmentation(color_engine, photos, options, batches):
    folder = detect(photos / "000012.png", *options)
    assert color_engine.batches == batches
    (entry,) = json.loads((folder / "detections.json").read_text())
    assert [d["box"] for d in entry["detections"]] == [[10, 20, 42, 40]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tile", "31"], "--tile=31; expected an integer of at least 32"),
        (["--overlap", "1"], "--overlap=1"),
        (["--augment", "[0.5]"], "augment: ColorEngine runs the model at one size"),
        (["--augment", "some"], "--augment"),
        (["--batch_size", "0"], "--batch_size=0; expected a positive integer"),
        (["--iou_threshold", "1.5"], "--iou_threshold=1.5; expected a number from 0 to 1"),
        (["--score_threshold", "2"], "score threshold 2"),
    ],
)
def test_wrong_options(color_engine, photos, capsys, options, message):
    assert main(["detect", "--checkpoint", "x.pt", str(photos), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not Path("runs").exists()
