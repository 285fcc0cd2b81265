"""Every Python block and every command of the README and the documentation runs.

Each page runs in a folder that contains the files it names (``DATA``, ``IMAGES``, ``runs/train/best.pt``, ...). Its
blocks run in order and share their variables. Options that make training short are appended to the commands. Commands
that build or download something are checked without running them.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fcos_fast.cli.main import main as fcos_fast_command
from tests.inference.media import write_frames

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")
markdown_it = pytest.importorskip("markdown_it", reason="parses the pages; install fcos_fast[docs]")
pytest.importorskip("torchvision", reason="the examples need torchvision")
pytest.importorskip("mmdet", reason="the examples need mmdetection; install fcos_fast[interop]")

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = {"python", "bash", "text"}
"""Text is not run."""
SERVED_AT = "127.0.0.1:8000"
"""Address of the server in the pages. The tests' server has a free port instead."""

SHORT_TRAINING = shlex.split(
    "--model.fpn_channels 32 --model.head_channels 32 --model.min_size null --model.max_size null "
    "--augment.size [64,96] --train.epochs 1 --train.batch_size 4 --train.device cpu --data.workers 0"
)
SHORT = {
    "train": SHORT_TRAINING,
    "resume": ["--train.epochs", "2"],
    "benchmark": ["--repeats", "1", "--warmup", "0"],
    "load test": ["--seconds", "0.5"],
}
"""Options that are appended to a command, and win."""


def fences(page: Path) -> Iterator[tuple[str, int, str]]:
    """Language, first line and text of each fenced block."""
    for token in markdown_it.MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type in ("fence", "code_block"):
            yield token.info.strip(), token.map[0] + 2, token.content


def commands(block: str) -> list[list[str]]:
    """The words of each command of a block."""
    lines = block.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.fixture
def examples(tmp_path, monkeypatch) -> Iterator[Path]:
    """The working folder of a page."""
    from fcos_fast.data import SyntheticConfig, write_voc
    from fcos_fast.data.images import read_pixels
    from fcos_fast.models import backbones

    appearance = SyntheticConfig(size=(64, 96), object_size=(16, 48), max_objects=3)
    write_voc(tmp_path / "DATA", {"train": 8, "val": 4}, config=appearance)
    write_voc(tmp_path / "BCCD", {"trainval": 8, "test": 4}, config=appearance)
    images = sorted((tmp_path / "DATA" / "JPEGImages").iterdir())
    (tmp_path / "IMAGES").mkdir()
    for image in images[:2]:
        shutil.copy(image, tmp_path / "IMAGES")
    for name in ("photograph.jpg", "drawn.jpg"):
        shutil.copy(images[0], tmp_path / name)
    write_frames(tmp_path / "film.mp4", [read_pixels(image) for image in images[:4]])
    monkeypatch.chdir(tmp_path)
    registered = dict(backbones.BACKBONES)
    yield tmp_path
    backbones.BACKBONES.clear()  # in place: a page registers one, and other modules hold this dictionary
    backbones.BACKBONES.update(registered)


def published_checkpoint(path: Path) -> None:
    """A file in the format of the official FCOS, with random weights."""
    from fcos_fast.engine.foreign import write_foreign
    from fcos_fast.models import PRESETS, build_detector
    from fcos_fast.models.checkpoint_formats import find_format

    config = PRESETS["official-improved"]
    torch.save(write_foreign(config, build_detector(config).state_dict(), find_format("official")), path)


def prepare(words: list[str]) -> None:
    """Make the files that a command reads and no earlier command of its page wrote."""
    if "runs/train/best.pt" in words or "runs/train" in words:
        train_first()
    if "FCOS_imprv_R_50_FPN_1x.pth" in words:
        published_checkpoint(Path("FCOS_imprv_R_50_FPN_1x.pth"))


def train_first() -> None:
    if not Path("runs/train/best.pt").exists():
        assert fcos_fast_command(shlex.split("train --config small --data.root DATA") + SHORT_TRAINING) == 0


class Server:
    """``fcos-fast serve`` of a page, in the background."""

    address = SERVED_AT
    process: subprocess.Popen | None = None

    def start(self, words: list[str]) -> None:
        command = [sys.executable, "-m", "fcos_fast.cli", *words, "--port", "0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
        line = self.process.stdout.readline()
        self.address = line.split()[0].removeprefix("http://")

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            self.process.communicate(timeout=60)
            assert self.process.returncode == 0


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


def run(words: list[str], server: Server) -> None:
    """Run a command, or check it if it builds, downloads or takes minutes."""
    prepare(words)
    match words:
        case ["fcos-fast", "serve", *_] if "--help" not in words:
            server.start(words[1:])
        case ["curl", *rest]:
            subprocess.run(["curl", "--fail", "--silent", "--show-error", *rest], check=True)
        case ["python", "-m", "benchmarks.serving", *rest]:
            load_test = [sys.executable, "-m", "benchmarks.serving", *rest, *SHORT["load test"]]
            subprocess.run(load_test, check=True, env=environment())
        case ["fcos-fast", subcommand, *_]:
            kind = "resume" if "--resume" in words else subcommand
            short = [] if "--help" in words else SHORT.get(kind, [])
            if "--help" in words:
                with pytest.raises(SystemExit) as end:
                    fcos_fast_command(words[1:])
                assert end.value.code in (0, None)
            else:
                assert fcos_fast_command([*words[1:], *short]) == 0
        case ["python", "-m", "fcos_fast.info"]:
            subprocess.run([sys.executable, *words[1:]], check=True, env=environment())
        case ["torchrun", *rest]:
            launcher = [sys.executable, "-m", "torch.distributed.run"]
            subprocess.run([*launcher, *rest, *SHORT_TRAINING], check=True, env=environment())
        case ["make", *_]:
            subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        case ["pip", "install", *_]:
            check_pip_install(words[2:])
        case ["pytest", *rest]:
            collect = [sys.executable, "-m", "pytest", *rest, "--collect-only", "-q"]
            # under xdist, pytest-benchmark would be disabled and reject --benchmark-only
            alone = {name: value for name, value in environment().items() if not name.startswith("PYTEST_")}
            subprocess.run(collect, cwd=ROOT, check=True, env=alone, stdout=subprocess.DEVNULL)
        case _:
            pytest.fail(f"no rule in {Path(__file__).name} for the command: {shlex.join(words)}")


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"}


def check_pip_install(words: list[str]) -> None:
    """Extras exist; packages that are named are those that a build requires."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for word in words:
        if extras := re.fullmatch(r"\.\[([\w,]+)\]", word):
            unknown = set(extras.group(1).split(",")) - set(project["project"]["optional-dependencies"])
            assert not unknown, f"pip install {word}: no extra {unknown}"
        elif word not in (".", "--no-build-isolation", "-v"):
            assert word.split(">=")[0] in {
                re.split(r"[<>=\[]", needed)[0] for needed in project["build-system"]["requires"]
            } | {"wheel"}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_block_runs(page, examples, server):
    variables: dict[str, object] = {"__name__": "__main__"}
    for language, line, block in fences(page):
        block = block.replace(SERVED_AT, server.address)
        if language == "python":
            if "runs/train/best.pt" in block:
                train_first()
            exec(compile("\n" * (line - 1) + block, str(page), "exec"), variables)
        elif language == "bash":
            for words in commands(block):
                run(words, server)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_block_escapes(page):
    """Blocks are fenced and name their language; ``{...}`` are directives of Sphinx."""
    for language, line, _ in fences(page):
        assert language in LANGUAGES or language.startswith("{"), (
            f"{page}:{line}: block of language {language!r}"
        )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert "://" in target or (page.parent / target).exists(), f"{page}: {target}"


def test_readme_is_short():
    """A first page, not a manual."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
