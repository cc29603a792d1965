"""``jsfree benchmark`` with suites that score files of answers by labels or by a judge."""

import json

import pytest
from rich.console import Console
from typer.testing import CliRunner

from jsfree.errors import ConfigError
from jsfree.evaluation.benchmarks.ic import IC
from jsfree.evaluation.benchmarks.miniworld_judge import MiniWorldTruth
from jsfree.judge.judging import Judge
from jsfree.judge.settings import JudgeSettings
from jsfree.judge.simulated import SimulatedJudge
from jsfree.miniworld.world import png_bytes, scene, true_caption
from ray_jobs.cli import app
from ray_jobs.commands.benchmark_models import report_on_judges

SCENES = [scene("development", number) for number in range(4)]


def run(*arguments):
    """Run the command; return its result."""
    return CliRunner().invoke(app, ["benchmark", *map(str, arguments)])


@pytest.fixture
def data(tmp_path):
    """Images by category, and a file of true captions."""
    lines = []
    for each in SCENES:
        name = f"{each.context}/{each.scene_id}.png"
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png_bytes(each))
        lines.append(json.dumps({"image_id": name, "caption": true_caption(each)}) + "\n")
    (tmp_path / "answers.jsonl").write_text("".join(lines), encoding="utf-8")
    return tmp_path


def test_ic_by_a_judge_and_a_second_run_that_costs_nothing(data):
    judge = data / "judge.yaml"
    with SimulatedJudge(MiniWorldTruth(SCENES)).serve() as url:
        judge.write_text(
            f"judge: {{url: '{url}', model: simulated-judge, revision: r1, cache: '{data}/cache'}}", encoding="utf-8"
        )
        arguments = ("ic", "--answers", data / "answers.jsonl", "--data", data / "images", "--judge", judge)
        done = run(*arguments, "--json")
        assert done.exit_code == 0, done.output
        result = json.loads(done.stdout)
        assert result["metrics"]["claim_f1"]["value"] == 1
        assert result["metrics"]["ic_f1"]["value"] == 10
        replies = result["judge"]["replies"]
        assert replies["asked"] == 4 * 5 == replies["paid"] + replies["cached"]  # some analyses are the same
        assert set(result["groups"]) == {each.context for each in SCENES}
        done = run(*arguments)
    assert done.exit_code == 0, done.output
    assert "nothing was paid" in " ".join(done.output.split())


def test_a_model_that_the_judges_server_does_not_have_is_reported_before_captions_are_made(tmp_path):
    console = Console(record=True, width=300)
    with SimulatedJudge(MiniWorldTruth(SCENES)).serve() as url:
        settings = {"url": url, "revision": "r1", "cache": str(tmp_path)}
        served, missing = (Judge(JudgeSettings(model=name, **settings)) for name in ("simulated-judge", "other"))
        report_on_judges([IC(served), IC(served, second=missing)], console)
    lines = console.export_text().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("fails: judge other at http")


def test_pope_from_files(tmp_path):
    row = {"question_id": 1, "image": "1.jpg", "text": "Is there a dog in the image?", "label": "yes"}
    for kind in ("random", "popular", "adversarial"):
        (tmp_path / f"coco_pope_{kind}.json").write_text(json.dumps(row), encoding="utf-8")
    answers = tmp_path / "answers.jsonl"
    answers.write_text(json.dumps({"question_id": "random/1", "answer": "Yes, a dog."}), encoding="utf-8")
    arguments = ("pope", "--answers", answers, "--data", tmp_path, "--scoring")
    done = run(*arguments, "lmms-eval", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["metrics"]["undecided"]["value"] == 1
    with pytest.raises(ConfigError, match="choose from original, vcd, lmms-eval, vlmevalkit"):
        raise run(*arguments, "strict").exception
