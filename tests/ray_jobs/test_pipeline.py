"""The whole loop at a small scale: Ray actors, open_clip, DeepSpeed under Ray Train, two rounds and a report."""

import io
import math
import shutil
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from rich.console import Console

from jsfree import config, schemas
from jsfree.errors import ConfigError, DeviceError, RunError, StageError
from jsfree.images.overlap import read_hashes
from jsfree.models.loading import load_captioner
from jsfree.run.folder import Folder, shard_name
from jsfree.run.run import Run
from ray_jobs import pipeline
from ray_jobs.cluster.failures import unwrap_errors
from ray_jobs.commands.console import Reporter
from ray_jobs.commands.preflight import remaining_stages
from ray_jobs.commands.publish import plan_publication
from ray_jobs.commands.smoke import smoke
from serve.app import served_models

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

SMALL = {
    "rounds": 2,
    "shard_rows": 48,
    "source": {"count": 144},
    "generate": {"resources": {"replicas": 1}},  # starting a replica takes longer than its work
    "score": {"with_generation": True, "resources": {"replicas": 1}},
    "evaluate": {"source": {"count": 60}, "modes": {"greedy": {}}, "bootstrap": 200},
    "select": {"first": 3, "last": 10},
    "train": {"pairs_per_step": 16, "epochs": 1, "checkpoint_every": 2, "sft_weight": 0.1},
}


def quiet() -> Reporter:
    return Reporter(Console(file=io.StringIO()))


def settings(uri, **changes) -> config.RunConfig:
    return config.build({"run": str(uri), **SMALL, **changes}, where="test")


@pytest.fixture(scope="module")
def finished(ray_session, tmp_path_factory) -> Run:
    """A run of two rounds that scores captions during generation. Tests of single stages score them separately."""
    path = tmp_path_factory.mktemp("runs") / "small"
    pipeline.run(settings(path), quiet())
    return Run.existing(str(path))


@pytest.mark.parametrize("number", [1, 2])
def test_every_sample_is_in_every_table_once(finished, number):
    samples = finished.stage(number, "samples").read_shards(schemas.SAMPLES)["sample_id"].to_pylist()
    assert len(samples) == len(set(samples)) == 144
    pairs = finished.stage(number, "pairs").read_shards(schemas.PAIRS)["sample_id"].to_pylist()
    scored = finished.stage(number, "scored").read_shards(schemas.SCORED)["sample_id"].to_pylist()
    assert sorted(pairs) == sorted(samples)
    assert sorted(scored) == sorted(samples)


def test_rounds_use_new_images_and_start_from_the_previous_model(finished):
    first, second = (
        set(finished.stage(number, "samples").read_shards(schemas.SAMPLES)["sample_id"].to_pylist())
        for number in (1, 2)
    )
    assert not first & second
    m1 = load_captioner(finished.stage(1, "model").uri).model.state_dict()
    m2 = load_captioner(finished.stage(2, "model").uri).model.state_dict()
    m0 = load_captioner("miniworld:captioner").model.state_dict()
    moved = "model.language_model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(m0[moved], m1[moved])
    assert not torch.equal(m1[moved], m2[moved])
    frozen = [name for name in m0 if name.startswith("model.vision_tower")]
    assert frozen
    assert all(torch.equal(m0[name], m2[name]) for name in frozen)


@pytest.mark.parametrize("number", [1, 2])
def test_the_loss_starts_at_ln_2_and_falls(finished, number):
    steps = finished.stage(number, "train").read_json("steps.json")
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert [step["step"] for step in steps] == list(range(len(steps)))
    assert steps[-1]["loss"] < steps[0]["loss"]
    reference = finished.stage(number, "reference").read_table(shard_name(0), schemas.REFERENCE)
    selected = finished.stage(number, "selected").read_shards(schemas.SELECTED)
    assert reference["sample_id"].to_pylist() == selected["sample_id"].to_pylist()


def test_chosen_captions_score_higher_and_inverted_pairs_are_swapped(finished):
    for row in finished.stage(1, "selected").read_shards(schemas.SELECTED).to_pylist():
        assert row["chosen"]["score"] >= row["rejected"]["score"]
        assert row["gap"] == pytest.approx(row["chosen"]["score"] - row["rejected"]["score"])
        assert row["chosen"]["text"] == row["high" if row["inverted"] else "low"]["text"]
        mean = sum(sentence["score"] for sentence in row["chosen"]["sentences"]) / len(row["chosen"]["sentences"])
        assert row["chosen"]["score"] == pytest.approx(mean)


def test_the_published_model_has_the_key_layout_of_the_hub(finished):
    from safetensors import safe_open

    with safe_open(f"{finished.stage(1, 'model').uri}/model.safetensors", "pt") as file:
        prefixes = {".".join(name.split(".")[:2]) for name in file.keys()}  # noqa: SIM118 - not a mapping
    assert prefixes == {
        "language_model.lm_head",
        "language_model.model",
        "multi_modal_projector.linear_1",
        "multi_modal_projector.linear_2",
        "vision_tower.vision_model",
    }


def test_metrics_and_report_are_complete(finished):
    for number in (1, 2):
        metrics = finished.round(number).read_json("metrics.json")
        assert set(metrics) == {"before", "after", "scenes"}
        assert metrics["scenes"] == 60
        assert set(metrics["before"]["greedy"]) == {
            "response_hallucination", "mention_hallucination", "recall", "precision", "f1", "mentions",
            "distinct_mentions", "duplicates", "invented", "misnamed", "attribute_errors", "words",
        }  # fmt: skip
        for estimate in metrics["after"]["greedy"].values():
            assert estimate["low"] <= estimate["value"] <= estimate["high"]
    assert (
        finished.round(1).read_json("metrics.json")["before"] == finished.round(2).read_json("metrics.json")["before"]
    )
    assert finished.folder.read_json("run.json")["rounds_done"] == 2
    assert (finished.folder / "report").read("index.html").startswith(b"<!doctype html>")


def test_the_smoke_checks_pass(finished):
    """All checks except the chosen reward, whose change in seven steps is below noise (see checks/test_smoke.py)."""
    shown = io.StringIO()
    with suppress(StageError):
        smoke(finished, Console(file=shown, width=160))
    passed = {check["name"]: check["passed"] for check in finished.folder.read_json("smoke.json")}
    assert len(passed) == 19
    assert {name for name, ok in passed.items() if not ok} <= {f"round {k}: the chosen reward rises" for k in (1, 2)}
    assert shown.getvalue().count(" pass ") == sum(passed.values())


def test_a_failed_smoke_check_is_reported_with_its_remedy(finished):
    steps = finished.stage(1, "train").read_json("steps.json")
    finished.stage(1, "train").write_json("steps.json", [{**steps[0], "loss": 0.8}, *steps[1:]])
    shown = io.StringIO()
    try:
        with pytest.raises(StageError, match="of 19 smoke checks failed: round 1: the loss starts at ln 2"):
            smoke(finished, Console(file=shown, width=160))
    finally:
        finished.stage(1, "train").write_json("steps.json", steps)
    assert "FAIL" in shown.getvalue()
    assert "--restart train" in shown.getvalue()


def test_a_project_error_in_a_task_is_raised_with_its_one_line_message(ray_session):
    @ray.remote
    def fail() -> None:
        raise DeviceError("there is no GPU; set gpus: 0")

    with pytest.raises(DeviceError) as error, unwrap_errors("train"):
        ray.get(fail.remote())
    assert str(error.value) == "there is no GPU; set gpus: 0"


def test_resuming_a_finished_run_does_no_work(finished, monkeypatch):
    def refuse(*_):
        raise AssertionError("a finished run needs no cluster")

    monkeypatch.setattr("ray_jobs.cluster.session.Cluster.ensure", refuse)
    before = (finished.folder / "round-1").read_json("metrics.json")
    pipeline.run(settings(finished.folder.uri), quiet())
    assert (finished.folder / "round-1").read_json("metrics.json") == before


def collapsed_copy(finished, folder) -> Run:
    """A copy of a run whose captions after round 2 have lost all but their first words."""
    shutil.copytree(finished.folder.path, folder)
    copy = Run.existing(str(folder))
    stage = copy.stage(2, "captions_scored/m2-greedy")
    for shard in stage.shards():
        table = stage.read_table(shard_name(shard), schemas.SCORED_CAPTIONS)
        rows = [{**row, "text": " ".join(row["text"].split()[:3])} for row in table.to_pylist()]
        metadata = stage.table_metadata(shard_name(shard))
        stage.write_table(shard_name(shard), pa.Table.from_pylist(rows, schema=schemas.SCORED_CAPTIONS), metadata)
    return copy


def test_a_worse_round_ends_the_run_and_its_predecessor_is_the_result(finished, tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("a run that has stopped starts no further round")

    monkeypatch.setattr("ray_jobs.cluster.session.Cluster.ensure", refuse)
    copy = collapsed_copy(finished, tmp_path / "run")
    for rounds in (2, 4):  # the second time a resumed run, which is asked for more rounds
        shown = io.StringIO()
        pipeline.run(settings(copy.folder.uri, rounds=rounds, rounds_stop={}), Reporter(Console(file=shown)))
        assert f"Stopped after round 2 of {rounds} (rounds_stop): m2 is worse than m1" in shown.getvalue()
        assert "The result of the run is m1; with --set rounds_stop=null it continues from m2." in shown.getvalue()
        record = copy.folder.read_json("run.json")
        assert (record["status"], record["rounds_done"]) == ("done", 2)
        assert (record["rounds_stop"]["worse_round"], record["rounds_stop"]["last_good_round"]) == (2, 1)
        assert record["rounds_stop"]["reasons"][-1].startswith("Words −")
    stopped = Run.existing(copy.folder.uri)
    assert [model.name for model in served_models(stopped)] == ["m0", "m1"]
    assert plan_publication(stopped, None, str(tmp_path / "out")).number == 1
    assert plan_publication(stopped, 2, str(tmp_path / "out")).number == 2
    assert remaining_stages(stopped.config) == set()
    page = (stopped.folder / "report").read("index.html").decode()
    assert "The run stopped after round 2: m2 is worse than m1" in page
    pipeline.run(settings(copy.folder.uri), quiet())  # without the rule, both rounds count
    assert "rounds_stop" not in copy.folder.read_json("run.json")
    assert [model.name for model in served_models(Run.existing(copy.folder.uri))] == ["m0", "m2"]


def test_rounds_that_are_not_worse_do_not_end_the_run(finished):
    shown = io.StringIO()
    lenient = {"max_loss": 1, "max_lost_words": 1, "max_added_repeats": 9, "max_added_truncated": 1}
    pipeline.run(settings(finished.folder.uri, rounds_stop=lenient), Reporter(Console(file=shown)))
    assert "m2 is not worse than m1 in greedy captions: CLIP score" in shown.getvalue()
    assert "Stopped" not in shown.getvalue()
    assert "rounds_stop" not in finished.folder.read_json("run.json")
    measured = {model: finished.round(number).read_json("label_free.json")["after"]["greedy"]["repeated_sentences"]
                for number, model in ((1, "m1"), (2, "m2"))}  # fmt: skip
    change = finished.round(2).read_json("label_free.json")["changes"]["greedy"]["repeated_sentences"]
    assert change["value"] == pytest.approx(measured["m2"]["value"] - measured["m1"]["value"])
    pipeline.run(settings(finished.folder.uri), quiet())


def test_a_single_stage_runs_in_the_first_round_where_it_is_unfinished(finished, ray_session):
    small = settings(finished.folder.uri)
    assert [pipeline.run_stage(small, quiet(), name) for name in pipeline.WORK] == [2] * 5
    scored = finished.stage(1, "captions_scored/m1-greedy")
    expected = finished.round(1).read_json("metrics.json")
    for name in ("metrics.json", "label_free.json"):
        (finished.round(1) / name).remove()
    scored.remove()
    assert pipeline.run_stage(small, quiet(), "evaluate") == 1
    assert scored.count_rows() == 60
    assert finished.round(1).read_json("metrics.json") == expected


def test_a_stage_out_of_order_is_refused_and_writes_nothing(tmp_path):
    small = settings(tmp_path / "run")
    for name, number, needed in [
        ("score", None, "'score' of round 1 needs 'generate' of round 1.*first do `jsfree generate --round 1`"),
        ("generate", 2, "'generate' of round 2 needs 'generate' of round 1"),
        ("train", 1, "'train' of round 1 needs 'generate' of round 1"),
    ]:
        with pytest.raises(RunError, match=needed):
            pipeline.run_stage(small, quiet(), name, number)
    with pytest.raises(ConfigError, match="--round 3: the run has rounds 1 to 2"):
        pipeline.run_stage(small, quiet(), "generate", 3)
    assert not (tmp_path / "run").exists()


def test_stages_run_one_by_one_produce_the_output_of_a_run(finished, ray_session, tmp_path):
    alone = settings(tmp_path / "run", source={"count": 48}, rounds=1, score={"resources": {"replicas": 1}})
    for name in ("generate", "score", "select"):
        assert pipeline.run_stage(alone, quiet(), name) == 1
    made = Run.existing(alone.run)
    first = [row["sample_id"] for row in finished.stage(1, "samples").read_shards(schemas.SAMPLES).to_pylist()[:48]]
    assert [row["sample_id"] for row in made.stage(1, "samples").read_shards(schemas.SAMPLES).to_pylist()] == first
    assert made.stage(1, "scored").count_rows() == 48
    assert made.stage(1, "selected").count_rows() > 0
    with pytest.raises(RunError, match="'evaluate' of round 1 needs 'train' of round 1"):
        pipeline.run_stage(alone, quiet(), "evaluate")


def test_changed_settings_are_refused_with_the_key_and_the_remedy(finished):
    with pytest.raises(RunError, match=r"'train' of round 1.*train.beta: 0.1 -> 0.3.*--restart train"):
        pipeline.run(settings(finished.folder.uri, train={**SMALL["train"], "beta": 0.3}), quiet())


def test_only_a_lost_shard_is_recomputed(finished, ray_session):
    stage = finished.stage(1, "pairs")
    kept, lost = (f"{stage.uri}/{shard_name(number)}" for number in (0, 1))
    expected = pq.read_table(lost)
    import os

    written = os.stat(kept).st_mtime_ns
    os.remove(lost)
    os.remove(f"{stage.uri}/_manifest.json")
    pipeline.run(settings(finished.folder.uri), quiet())
    assert pq.read_table(lost).equals(expected)
    assert os.stat(kept).st_mtime_ns == written
    assert finished.manifest(1, "pairs").rows_out == 144


def test_bad_images_become_error_rows_and_too_many_fail_the_stage(ray_session, tmp_path):
    from jsfree.miniworld import world

    images = tmp_path / "images"
    images.mkdir()
    for index in range(40):
        world.draw(world.scene("unlabelled", index)).save(images / f"{index:02d}.png")
    (images / "broken.png").write_bytes(b"no image")
    source = {"kind": "folder", "path": str(images), "count": 41}
    strict = settings(tmp_path / "run", rounds=1, source=source)
    with pytest.raises(StageError, match=r"1 of 41 rows failed, more than max_failed_fraction.*broken\.png"):
        pipeline.run(strict, quiet())
    errors = (Run.existing(strict.run).round(1) / "errors" / "pairs").read_shards(schemas.ERRORS).to_pylist()
    assert [(row["kind"], row["stage"]) for row in errors] == [("undecodable", "pairs")]
    assert Folder(f"{strict.run}/round-1/pairs").count_rows() == 40


def test_no_round_trains_on_an_evaluation_image_under_another_name(ray_session, tmp_path):
    import json

    from jsfree.miniworld import world

    for index in range(24):
        picture = world.png_bytes(world.scene("unlabelled", index))
        (tmp_path / "all").mkdir(exist_ok=True)
        (tmp_path / "all" / f"{index}.png").write_bytes(picture)
        if index % 4 == 0:
            (tmp_path / "few").mkdir(exist_ok=True)
            (tmp_path / "few" / f"copy-{index}.jpg").write_bytes(picture)
    (tmp_path / "mix.json").write_text(json.dumps([{"image": f"all/{index}.png"} for index in range(24)]))
    chosen = settings(
        tmp_path / "run",
        rounds=1,
        source={"kind": "llava_json", "path": str(tmp_path / "mix.json"), "count": 24},
        evaluate={"source": {"kind": "folder", "path": str(tmp_path / "few"), "count": 6}},
        max_failed_fraction=0,
    )
    pipeline.run_stage(chosen, quiet(), "generate")
    run = Run.existing(chosen.run)
    told = run.manifest(1, "pairs")
    assert (told.rows_in, told.rows_out, told.rows_failed, told.facts) == (24, 18, 0, {"excluded": 6})
    names = {row["image"]["id"] for row in run.stage(1, "pairs").read_shards(schemas.PAIRS).to_pylist()}
    assert names == {f"all/{index}.png" for index in range(24) if index % 4}
    errors = (run.round(1) / "errors" / "pairs").read_shards(schemas.ERRORS).to_pylist()
    assert {row["kind"] for row in errors} == {"evaluation_image"}
    assert run.stage(1, "scored").count_rows() == 18
    # As left by an attempt without an evaluation set: the shard contains evaluation images and must be recomputed.
    kept = run.stage(1, "pairs").read_table(shard_name(0), schemas.PAIRS)
    with_all = [{**row, "sample_id": f"x{number}"} for number, row in enumerate(kept.to_pylist())]
    with_all[0]["image"]["sha256"] = next(iter(read_hashes(run.stage(1, "evaluation_hashes").uri)))
    table = pa.Table.from_pylist(with_all, schema=schemas.PAIRS)
    run.stage(1, "pairs").write_table(shard_name(0), table, {"shard": 0, "rows_in": 24, "rows_out": 18,
                                      "rows_failed": 0, "tokens": 0, "device_seconds": 0.0})  # fmt: skip
    run.stage(1, "pairs").remove("_manifest.json")
    pipeline.run_stage(chosen, quiet(), "generate")
    assert run.stage(1, "pairs").read_table(shard_name(0), schemas.PAIRS).equals(kept)
    assert run.manifest(1, "pairs").facts == {"excluded": 6}
