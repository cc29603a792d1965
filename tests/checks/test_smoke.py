"""The smoke checks: a sound run passes all of them, and each check fails on a run with the defect it looks for."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from jsfree import schemas
from jsfree.checks import smoke
from jsfree.checks.findings import Verdict
from jsfree.checks.smoke import Reloaded, examine, reload
from jsfree.config import RunConfig
from jsfree.errors import ModelError
from jsfree.models.loading import load_captioner
from jsfree.models.saving import publish_captioner
from jsfree.report.page import build_report
from jsfree.run.folder import shard_name
from jsfree.run.run import Run
from jsfree.run.stages import manifests_of_round
from tests.support import example_run

STAGES, CAPTIONS, HALLUCINATION, GAP, LN2, MARGIN, CHOSEN, CHANGED, AGAIN = (check.name for check in smoke.CHECKS)
REPORT = smoke.REPORT.name


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """A finished run of one round with its report."""
    folder = tmp_path_factory.mktemp("sound") / "run"
    run = example_run.build(folder, errors=False, select={"first": 2, "last": 9})
    samples = [example_run.sample(run, "test", index) for index in range(run.config.evaluate.source.count)]
    example_run.write_rows(run, 1, "evaluation", samples, schemas.SAMPLES)
    hashes = [{"sample_id": sample["sample_id"], "sha256": "0" * 64} for sample in samples]
    example_run.write_rows(run, 1, "evaluation_hashes", hashes, schemas.EVALUATION_HASHES)
    build_report(run)
    return folder


@pytest.fixture
def run(sound, tmp_path) -> Run:
    """A copy of the sound run for a test to break."""
    shutil.copytree(sound, tmp_path / "run")
    return reopened(tmp_path / "run")


def reopened(folder: Path) -> Run:
    return Run(Run.existing(str(folder)).config.model_copy(update={"run": str(folder)}))


def as_stored(run: Run) -> Reloaded:
    """The measurements of a published model that works."""
    stored = run.stage(1, "captions/m1-greedy").read_table(shard_name(0), schemas.CAPTIONS).to_pylist()
    texts = {row["sample_id"]: row["text"] for row in stored}
    return Reloaded("greedy", texts, trained=34, changed=34, frozen=71, touched=0)


def failures(run: Run, reloaded=None) -> dict[str, str]:
    """The findings of the failed checks, by name of the check."""
    findings = examine(run, {1: reloaded or as_stored(run)})
    assert len(findings) == 10
    assert all(finding.found and finding.remedy for finding in findings)
    return {finding.name: finding.found for finding in findings if finding.verdict is Verdict.FAILS}


def test_a_finished_run_may_lack_the_hashes_of_evaluation_images(run):
    """They are made only before the first pairs: a run that restarted at training does not have them."""
    run.stage(1, "evaluation_hashes").remove()
    assert failures(run) == {}


def rewrite(run: Run, stage: str, schema: pa.Schema, change) -> None:
    """Change the rows of a stage in place; ``change`` gets each row and its number."""
    folder, number = run.stage(1, stage), 0
    for shard in folder.shards():
        rows = folder.read_table(shard_name(shard), schema).to_pylist()
        for row in rows:
            change(row, number)
            number += 1
        folder.write_table(shard_name(shard), pa.Table.from_pylist(rows, schema=schema))


def change_steps(run: Run, change) -> None:
    steps = run.stage(1, "train").read_json("steps.json")
    for number, step in enumerate(steps):
        change(step, number / len(steps))
    run.stage(1, "train").write_json("steps.json", steps)


def test_a_sound_run_passes_all_checks(run):
    assert failures(run) == {}


def test_a_stage_without_manifest_without_rows_or_with_failed_rows_fails(run):
    manifest = run.manifest(1, "captions/m1-sampled")
    stage = "captions/m1-sampled"
    run.finish(1, stage, replace(manifest, rows_failed=1))
    assert "1 of 40" in failures(run)[STAGES]
    run.finish(1, stage, replace(manifest, rows_out=0))
    assert failures(run)[STAGES] == f"no rows came out of {stage}"
    run.stage(1, stage).remove("_manifest.json")
    assert failures(run)[STAGES] == f"no manifest of {stage}"


def test_a_missing_stage_fails_only_its_own_checks(run):
    run.stage(1, "train").remove()
    broken = failures(run)
    assert set(broken) == {STAGES, LN2, MARGIN, CHOSEN}
    assert "steps.json cannot be read" in broken[LN2]


@pytest.mark.parametrize(("stage", "schema"), [("pairs", schemas.PAIRS), ("captions/m1-greedy", schemas.CAPTIONS)])
def test_empty_captions_fail(run, stage, schema):
    def silence(row, number):
        if number % 5 == 0:
            row.get("high", row)["text"] = "  "

    reloaded = as_stored(run)
    rewrite(run, stage, schema, silence)
    assert "captions are empty" in failures(run, reloaded)[CAPTIONS]


def test_a_higher_h_must_lower_the_score(run):
    def exchange(row, _):
        row["low"]["score"], row["high"]["score"] = row["high"]["score"], row["low"]["score"]

    rewrite(run, "scored", schemas.SCORED, exchange)
    broken = failures(run)
    assert set(broken) == {HALLUCINATION}
    assert "higher h: +" in broken[HALLUCINATION]


def test_an_insignificant_difference_reports_the_required_pairs(run):
    def nearly_equal(row, number):
        row["high"]["score"] = row["low"]["score"] + (0.05 if number % 2 else -0.052)

    rewrite(run, "scored", schemas.SCORED, nearly_equal)
    assert "pairs would be significant" in failures(run)[HALLUCINATION]


def test_too_few_pairs_fail(run):
    def same_ratio(row, number):
        row["high"]["ratio"] = row["high"]["ratio"] if number < 12 else 0.0

    rewrite(run, "scored", schemas.SCORED, same_ratio)
    assert "at least 20 are needed" in failures(run)[HALLUCINATION]


def test_a_selected_pair_without_gap_fails(run):
    rewrite(run, "selected", schemas.SELECTED, lambda row, number: row.update(gap=0.0) if number == 0 else None)
    assert "1 have none" in failures(run)[GAP]


def test_an_initial_loss_other_than_ln_2_fails(run):
    change_steps(run, lambda step, done: step.update(loss=0.70) if done == 0 else None)
    assert set(failures(run)) == {LN2}


@pytest.mark.parametrize(("figure", "name"), [("margin", MARGIN), ("chosen_reward", CHOSEN)])
def test_a_falling_chosen_reward_fails(run, figure, name):
    change_steps(run, lambda step, done: step.update({figure: -done}))
    broken = failures(run)
    assert set(broken) == {name}
    assert "0 -> -0.8" in broken[name]


def test_too_few_steps_fail(run):
    steps = run.stage(1, "train").read_json("steps.json")
    run.stage(1, "train").write_json("steps.json", steps[:3])
    assert "at least 4 are needed" in failures(run)[MARGIN]


def test_unchanged_trained_weights_or_changed_frozen_weights_fail(run):
    good = as_stored(run)
    assert set(failures(run, replace(good, changed=20))) == {CHANGED}
    assert set(failures(run, replace(good, trained=0, changed=0))) == {CHANGED}
    assert "1 of 71 frozen" in failures(run, replace(good, touched=1))[CHANGED]


def test_a_published_model_that_fails_to_load_or_captions_differently_fails(run):
    good = as_stored(run)
    first = next(iter(good.texts))
    broken = failures(run, replace(good, texts={**good.texts, first: "A zebra."}))
    assert broken == {AGAIN: "39 of 40 greedy captions are reproduced"}
    unloadable = failures(run, ModelError("captioner 'x' holds no weights"))
    assert unloadable == {CHANGED: "captioner 'x' holds no weights", AGAIN: "captioner 'x' holds no weights"}


@pytest.mark.parametrize(
    ("tampered", "told"),
    [
        (lambda html: html.replace("<body", '<body><img src="https://example.org/a.png"', 1), "src=https://example"),
        (lambda html: html.replace("</body>", "<script>1</script></body>"), "<script>"),
        (lambda html: html[: len(html) // 2], "is cut off"),
    ],
)
def test_a_truncated_report_or_one_with_external_references_fails(run, tampered, told):
    report = run.folder / "report"
    report.write("index.html", tampered(report.read("index.html").decode()).encode())
    assert told in failures(run)[REPORT]


def test_no_report_fails(run):
    (run.folder / "report").remove()
    assert "index.html cannot be read" in failures(run)[REPORT]


def test_every_round_is_checked(run):
    config = run.config.model_copy(update={"rounds": 2})
    findings = {f.name: f for f in examine(Run(config), {1: as_stored(run), 2: ModelError("no model")})}
    verdicts = [finding.verdict for name, finding in findings.items() if name.startswith("round 1: ")]
    assert verdicts == [Verdict.OK] * 9
    assert {f.verdict for name, f in findings.items() if name.startswith("round 2: ")} == {Verdict.FAILS}
    assert "captions/m2-greedy" in findings[f"round 2: {STAGES}"].found
    assert "m0" not in json.dumps(manifests_of_round(2, config.evaluate.modes))


def test_reload_counts_changed_tensors(tmp_path, captioner):
    """One trained and one frozen tensor are changed before publishing; exactly these are reported."""
    config = RunConfig()
    weights = {name: tensor.clone() for name, tensor in captioner.model.state_dict().items()}
    weights["model.language_model.layers.0.mlp.up_proj.weight"] += 0.01
    weights["model.vision_tower.post_layernorm.bias"] += 0.01
    publish_captioner(captioner.model, captioner.processor, tmp_path / "model", weights)
    samples = [example_run.sample(Run(config), "test", index) for index in range(2)]
    reloaded = reload(config, "miniworld:captioner", str(tmp_path / "model"), samples, "m1", "cpu")
    assert (reloaded.changed, reloaded.touched) == (1, 1)
    assert reloaded.trained + reloaded.frozen == len(weights)
    assert reloaded.mode == "greedy"
    again = load_captioner(str(tmp_path / "model"))
    assert set(reloaded.texts) == {row["sample_id"] for row in samples}
    assert all(text and "<" not in text for text in reloaded.texts.values())
    assert again.model.dtype == captioner.model.dtype
