"""One word for one thing: the glossary of CONTRIBUTING.md, held against every text of the project."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXTS = (".py", ".md", ".h", ".cpp", ".cu", ".yaml", ".yml", ".toml", "Makefile")
EXEMPT = {"CONTRIBUTING.md", "tests/test_words.py"}  # they contain the glossary

WORDS = {
    r"pictures?": "image",
    r"verbs?": "subcommand",
    r"(?<!torch\.)layouts?(?!=\"constrained\")": "memory format, dataset format or checkpoint format",
    r"(leaves?|leaving|left) (it |them )?out": "skip or omit",
    r"refuse[sd]?|refusing": "raise or reject",
    r"anew": "again",
    r"likewise|alike": "the same",
    r"fell(s|ed)?|heed(s|ed)?": "suppress; ignore",
    r"recognis\w*|normalis\w*|synchronis\w*|optimis\w*|initialis\w*|colours?|centres?|greys?": "US spelling",
}


def texts() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this tree is no git checkout, so its files cannot be listed")
    return [ROOT / name for name in listed.stdout.split() if name.endswith(TEXTS) and name not in EXEMPT]


@pytest.mark.parametrize("word", WORDS, ids=lambda word: re.sub(r"\W+", "-", word)[:20])
def test_glossary(word):
    pattern = re.compile(rf"(?<![\w.])({word})(?!\w)", re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in texts()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, f"write {WORDS[word]!r} instead:\n" + "\n".join(found)
