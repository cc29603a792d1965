"""Prompts of judges: a changed text needs a new version."""

import hashlib
from pathlib import Path

import pytest

from jsfree.evaluation.benchmarks import prompts
from jsfree.evaluation.benchmarks.judged import prompt

FOLDER = Path(prompts.__file__).parent
RELEASED = {
    "halbench_objects.v1.txt": "8688632e3f1c739a",
    "ic_claims.v1.txt": "714f35a78c694393",
    "ic_precision_analysis.v1.txt": "4e2171af45034b1e",
    "ic_precision_score.v1.txt": "05ad547faf7cd08e",
    "ic_recall_analysis.v1.txt": "3438a9fce148b8ec",
    "ic_recall_score.v1.txt": "311c33f3ff3118bb",
    "mmhal_rating.v1.txt": "c83ca204b8a8b502",
}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.txt")), ids=lambda path: path.name)
def test_a_released_prompt_is_unchanged(path):
    text = path.read_text(encoding="utf-8").strip()
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == RELEASED[path.name], "add a file with the next version"
    name, version, _ = path.name.split(".")
    assert prompt(name, int(version.removeprefix("v"))).text == text


def test_no_released_prompt_is_missing():
    assert {path.name for path in FOLDER.glob("*.txt")} == RELEASED.keys()
