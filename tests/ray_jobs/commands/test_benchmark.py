"""``jsfree benchmark``: files of answers, models, what is written, and wrong requests."""

import json

import pytest
from typer.testing import CliRunner

from jsfree import config as configuration
from jsfree.errors import ConfigError, SourceError
from jsfree.evaluation import miniworld
from jsfree.evaluation.benchmarks.registry import SuiteOptions, build
from jsfree.miniworld import world
from jsfree.miniworld.exporting import export_scenes
from jsfree.run.folder import Folder, shard_name
from jsfree.run.run import Run
from ray_jobs.cli import app
from ray_jobs.rounds import Round
from tests.support.coco_files import write_coco


def benchmark(*arguments):
    done = CliRunner().invoke(app, ["benchmark", *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture
def data(tmp_path):
    return write_coco(tmp_path / "annotations", {1: ["dog", "person"], 2: ["bus"]}, {1: ["A man."], 2: []})


@pytest.fixture
def answers(tmp_path):
    path = tmp_path / "answers.jsonl"
    lines = [
        {"image_id": 1, "caption": "A dog and a cat on a sofa.", "objs": ["dog", "cat", "sofa", "cat"]},
        {"image_id": 2, "caption": "A bus.", "objs": ["bus"]},
    ]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


def test_chair_of_a_file_of_answers(data, answers, tmp_path):
    printed = benchmark(
        *("chair", "--answers", answers, "--data", data, "--stack", "lemmas"),
        *("--details", tmp_path / "out.json", "--json"),
    )
    result = json.loads(printed)
    assert result["suite"] == "chair"
    assert result["protocol"]["stack"] == "lemmas"
    assert result["metrics"]["CHAIRi"]["value"] == pytest.approx(2 / 4)
    assert result["counts"] == {"questions": 2, "answers": 2, "images": 2, "failed": 0, "not_scored": 0}
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert [sentence["image_id"] for sentence in written["sentences"]] == [1, 2]
    assert written["sentences"][0]["mscoco_hallucinated_words"] == [["cat", "cat"], ["sofa", "couch"]]
    assert [sentence["metrics"]["CHAIRs"] for sentence in written["sentences"]] == [1, 0]


def test_halbench_of_extracted_objects(data, answers, tmp_path):
    printed = benchmark(
        *("halbench", "--answers", answers, "--data", data, "--extractor", "objects"),
        *("--details", tmp_path / "out.json", "--json"),
    )
    result = json.loads(printed)
    assert result["metrics"]["Resp"]["value"] == pytest.approx(1 / 2)
    assert result["metrics"]["Ment"]["value"] == pytest.approx(2 / 4)
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert written["overall_metrics"]["CHAIRs_refine"] == pytest.approx(1 / 2)
    assert written["sentences"][0]["objs"] == ["dog", "cat", "sofa"]


def test_a_table_shows_the_metrics_with_intervals(data, answers):
    printed = benchmark("chair", "halbench", "--answers", answers, "--data", data)
    assert "Object HalBench: 2 answers about 2 images" in printed
    assert "CHAIRi" in printed
    assert "Resp." in printed


def test_the_list_says_what_is_missing_and_where_to_get_it(data):
    printed = benchmark("halbench", "--list", "--data", data)
    assert "instances_val2014.json" in printed
    assert "annotations_trainval2014.zip" in printed
    assert "yes" in printed
    assert "no" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chairs", "--data", "x", "--answers", "y"], "SUITE 'chairs' is unknown; choose from chair, halbench"),
        (["chair", "--data", "x", "--answers", "y", "--stack", "nltk"], "--stack 'nltk' is unknown"),
        (["chair", "--answers", "y"], "--data"),
        (["--data", "x"], "SUITE is missing"),
    ],
)
def test_wrong_requests_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        benchmark(*arguments)


def test_missing_files_and_models_are_named(data, answers, tmp_path):
    with pytest.raises(SourceError, match=r"has no instances_val2014.json"):
        benchmark("chair", "--answers", answers, "--data", tmp_path / "absent")
    (data / "val2014").mkdir()
    with pytest.raises(SourceError, match="holds none of the images"):
        benchmark("chair", "--model", "miniworld:captioner", "--data", data)


def run_here(current, title, stages, missing):
    """Runs stage classes in this process, in place of Ray's actors."""
    for stage in stages:
        call = stage.build()
        for number in stage.missing():
            rows = Folder(stage.source).read_table(shard_name(number), stage.source_schema).to_pylist()
            stage.target.publish(number, call(rows), len(rows), 1.0)
            run_here.shards.append(stage.name)


@pytest.mark.slow
def test_models_answer_all_suites_and_are_compared_with_the_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(Round, "_run_pass", run_here)
    monkeypatch.setenv("HOME", str(tmp_path))  # the judge's cache
    run_here.shards = []
    export_scenes("all", "test", 0, 3, tmp_path / "data")
    coco = tmp_path / "data" / "coco"
    (coco / "val2014" / "miniworld-test-000002.png").write_bytes(b"damaged")
    (tmp_path / "data" / "text" / "prompts.txt").write_text("What color is the cup?\n", encoding="utf-8")
    arguments = (
        *("all", "--model", "miniworld:captioner", "--model", "miniworld:captioner", "--data", tmp_path / "data"),
        *("--vocabulary", coco / "synonyms.txt", "--stack", "lemmas", "--judge", "miniworld"),
        *("--max-new-tokens", 96, "--beams", 2, "--run", tmp_path / "run", "--set", "max_failed_fraction=0.5"),
    )
    printed = benchmark(*arguments)
    assert "m1" in printed
    assert all(title in printed for title in ("CHAIR", "Object HalBench", "POPE", "AMBER", "MMHal-Bench", "IC"))
    decoded = len(run_here.shards)
    folder = tmp_path / "run" / "evaluation"
    chair, halbench, amber, ic = (
        json.loads((folder / "m1" / f"{suite}.json").read_text(encoding="utf-8"))
        for suite in ("chair", "halbench", "amber", "ic")
    )
    assert chair["generation"]["by"] == "jsfree engine"
    assert (halbench["generation"]["by"], halbench["generation"]["beams"]) == ("transformers generate", 2)
    assert chair["counts"] == {"questions": 3, "answers": 2, "images": 2, "failed": 1, "not_scored": 0}
    assert halbench["counts"]["answers"] == 3  # its file has the images themselves
    assert chair["differences"]["m0"]["CHAIRi"] == {"value": 0, "low": 0, "high": 0, "p": 1}
    assert amber["metrics"]["accuracy"]["value"] > 0.5  # the captioner says "Yes.", AMBER's files have "Yes"
    counts = [
        miniworld.count_caption(world.scene("test", detail["image_id"]), detail["caption"])
        for detail in chair["details"]
    ]
    exact = miniworld.summarise(counts, resamples=10)
    assert chair["metrics"]["CHAIRi"]["value"] == pytest.approx(exact["mention_hallucination"]["value"])
    assert ic["counts"]["not_scored"] == 0
    assert ic["metrics"]["claim_precision"]["value"] == pytest.approx(
        sum(each["shown"] for detail in ic["details"] for each in detail["claims"]["said"])
        / sum(len(detail["claims"]["said"]) for detail in ic["details"])
    )
    text, short = (
        json.loads((folder / "m1" / f"{suite}.json").read_text(encoding="utf-8")) for suite in ("text", "shortanswers")
    )
    assert text["differences"]["m0"]["perplexity"]["value"] == pytest.approx(0, abs=1e-6)  # m1 is the same model
    assert 1 < text["metrics"]["perplexity"]["value"] < 20
    assert short["metrics"]["accuracy"]["value"] > 0.5
    benchmark(*arguments)  # nothing is decoded again
    assert len(run_here.shards) == decoded


def test_all_skips_suites_without_files_and_says_so(data, tmp_path, monkeypatch):
    asked = []

    def measure(questions, *_):
        asked.extend(suite.name for suite, _ in questions)
        return {}, None

    monkeypatch.setattr("ray_jobs.commands.benchmark_models.measure_models", measure)
    (data / "val2014").mkdir()
    (data / "val2014" / "COCO_val2014_000000000002.jpg").touch()
    printed = benchmark("all", "--model", "miniworld:captioner", "--data", data)
    assert "chair" in asked
    assert "mmhal" not in asked
    assert "skipped: mmhal" in printed
    assert "ic" not in asked  # any folder of images looks like a category
    with pytest.raises(SourceError, match="does not exist"):
        benchmark("all", "--model", "miniworld:captioner", "--data", data / "typo")
    (data / "ic" / "people").mkdir(parents=True)
    (data / "ic" / "people" / "1.png").touch()
    benchmark("all", "--model", "miniworld:captioner", "--data", data)
    assert "ic" in asked


def test_all_suites_of_a_command_share_their_judge():
    options = SuiteOptions()
    assert build("mmhal", options).judges == build("ic", options).judges == (options.open_judges[0],)


@pytest.mark.slow
def test_captions_of_a_run_are_turned_back_into_images(tmp_path, monkeypatch):
    monkeypatch.setattr(Round, "_run_pass", run_here)
    run_here.shards = []
    settings = {"evaluate": {"source": {"split": "test", "count": 20}}}
    Run.open(configuration.build({**settings, "run": str(tmp_path / "run")}, where="test"))
    done = CliRunner().invoke(app, ["reconstruct", "--run", str(tmp_path / "run"), "--count", "3", "--json"])
    assert done.exception is None, done.exception
    result = json.loads(done.stdout)
    assert result["m0"]["counts"]["images"] == 3
    assert 0.3 < result["m0"]["metrics"]["object_overlap"]["value"] <= 1
    assert 0.3 < result["m0"]["metrics"]["clip_similarity"]["value"] <= 1
    pictures = tmp_path / "run" / "evaluation" / "reconstruction"
    assert all((pictures / detail["picture"]).is_file() for detail in result["m0"]["details"])
