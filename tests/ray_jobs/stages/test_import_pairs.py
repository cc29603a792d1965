"""Import of external pairs into a run: resumable, with error rows, and without a Ray session."""

import io
import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from jsfree import config, schemas
from jsfree.errors import ConfigError, RunError, StageError
from jsfree.run.folder import Folder, shard_name
from jsfree.run.run import Run
from ray_jobs import pipeline
from ray_jobs.commands.console import Reporter


def quiet() -> Reporter:
    return Reporter(Console(file=io.StringIO()))


def record(number: int, **changes) -> dict:
    texts = {"prompt": f"What is at {number}?", "chosen": f"Cat {number}.", "rejected": f"Dog {number}."}
    return {"images": [f"{number}.png"], **texts, **changes}


@pytest.fixture
def theirs(tmp_path) -> Path:
    path = tmp_path / "theirs.jsonl"
    rows = [record(number) for number in range(10)]
    rows[4] = record(4, chosen="")
    rows[7] = record(7, rejected="A dog.</s>")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(tmp_path, theirs, **changes) -> config.RunConfig:
    imported = {"format": "trl", "path": str(theirs)}
    base = {"run": str(tmp_path / "run"), "shard_rows": 4, "max_failed_fraction": 0.2, "imported": imported}
    base["evaluate"] = {"source": {"count": 2}}
    return config.build({**base, **changes}, where="test")


def rows(run: Run, stage: str, schema) -> list[dict]:
    return Folder(f"{run.folder.uri}/round-1/{stage}").read_shards(schema).to_pylist()


def test_records_become_samples_and_pairs_and_unusable_ones_error_rows(tmp_path, theirs):
    assert pipeline.run_stage(settings(tmp_path, theirs), quiet(), "generate") == 1
    run = Run.existing(str(tmp_path / "run"))
    samples, pairs = rows(run, "samples", schemas.SAMPLES), rows(run, "pairs", schemas.PAIRS)
    assert [row["prompt"] for row in samples] == [f"What is at {number}?" for number in range(10) if number != 4]
    assert [row["sample_id"] for row in pairs] == [row["sample_id"] for row in samples if row["prompt"][-2] != "7"]
    assert pairs[0]["image"]["uri"] == f"{tmp_path}/0.png"
    assert pairs[0]["low"]["ratio"] is None
    assert run.stage(1, "pairs").shards() == [0, 1, 2]
    errors = [*rows(run, "errors/samples", schemas.ERRORS), *rows(run, "errors/pairs", schemas.ERRORS)]
    assert [(row["stage"], row["kind"]) for row in errors] == [("samples", "empty_chosen"), ("pairs", "special_token")]
    assert errors[0]["message"].startswith(f"{theirs}, row 4: ")
    told = {name: run.manifest(1, name) for name in ("samples", "pairs")}
    assert [(each.rows_in, each.rows_out, each.rows_failed) for each in told.values()] == [(10, 9, 1), (9, 8, 1)]


def test_an_interrupted_import_resumes_and_keeps_finished_shards(tmp_path, theirs):
    chosen = settings(tmp_path, theirs)
    pipeline.run_stage(chosen, quiet(), "generate")
    stage = f"{chosen.run}/round-1/pairs"
    kept, lost = (f"{stage}/{shard_name(number)}" for number in (0, 1))
    written, expected = os.stat(kept).st_mtime_ns, pq.read_table(lost)
    os.remove(lost)
    os.remove(f"{stage}/_manifest.json")
    pipeline.run_stage(chosen, quiet(), "generate")
    assert pq.read_table(lost).equals(expected)
    assert os.stat(kept).st_mtime_ns == written
    assert Run.existing(chosen.run).manifest(1, "pairs").rows_out == 8


def evaluated_on(tmp_path, theirs, numbers) -> dict:
    """Write the records' images; settings of an evaluation on copies of the images with these numbers."""
    from jsfree.miniworld import world

    (tmp_path / "evaluated").mkdir(exist_ok=True)
    for number in range(10):
        picture = world.png_bytes(world.scene("development", number))
        (theirs.parent / f"{number}.png").write_bytes(picture)
        if number in numbers:
            (tmp_path / "evaluated" / f"other-{number}.jpeg").write_bytes(picture)
    return {"source": {"kind": "folder", "path": str(tmp_path / "evaluated"), "count": len(numbers)}}


def test_pairs_of_evaluation_images_are_excluded_but_not_counted_as_failures(tmp_path, theirs):
    evaluate = evaluated_on(tmp_path, theirs, (0, 4, 8, 9))
    chosen = settings(tmp_path, theirs, evaluate=evaluate, max_failed_fraction=0.12)  # one of nine fails
    pipeline.run_stage(chosen, quiet(), "generate")
    run = Run.existing(chosen.run)
    manifest = run.manifest(1, "pairs")
    assert (manifest.rows_in, manifest.rows_out, manifest.rows_failed, manifest.facts) == (9, 5, 1, {"excluded": 3})
    pairs = rows(run, "pairs", schemas.PAIRS)
    assert [row["low"]["text"] for row in pairs] == [f"Cat {number}." for number in (1, 2, 3, 5, 6)]
    assert all(len(row["image"]["sha256"]) == 64 for row in pairs)
    kinds = [row["kind"] for row in rows(run, "errors/pairs", schemas.ERRORS)]
    assert sorted(kinds) == ["evaluation_image"] * 3 + ["special_token"]
    assert run.manifest(1, "evaluation_hashes").rows_out == 4


def test_an_import_of_only_evaluation_images_fails(tmp_path, theirs):
    theirs.write_text("".join(json.dumps(record(number)) + "\n" for number in range(10)))
    chosen = settings(tmp_path, theirs, evaluate=evaluated_on(tmp_path, theirs, range(10)))
    for _ in range(2):
        with pytest.raises(StageError, match="no pair is left to train on, because 10 images are also in the evaluati"):
            pipeline.run_stage(chosen, quiet(), "generate")


def test_hashing_resumes_and_is_skipped_once_pairs_are_finished(tmp_path, theirs):
    import shutil

    chosen = settings(tmp_path, theirs, evaluate=evaluated_on(tmp_path, theirs, range(9)))
    pipeline.run_stage(chosen, quiet(), "generate")
    run = Run.existing(chosen.run)
    kept, lost = (f"{run.stage(1, 'evaluation_hashes').uri}/{shard_name(number)}" for number in (0, 1))
    written, expected = os.stat(kept).st_mtime_ns, pq.read_table(lost)
    os.remove(lost)
    for stage in ("evaluation_hashes", "pairs"):
        run.stage(1, stage).remove("_manifest.json")
    pipeline.run_stage(chosen, quiet(), "generate")
    assert pq.read_table(lost).equals(expected)
    assert os.stat(kept).st_mtime_ns == written
    run.stage(1, "evaluation_hashes").remove()  # as in runs of earlier versions, which did not hash images
    shutil.rmtree(tmp_path / "evaluated")
    os.remove(theirs)
    pipeline.run_stage(chosen, quiet(), "generate")
    assert not run.stage(1, "evaluation_hashes").exists()


def stopped(tmp_path, theirs, stage: str, **changes) -> config.RunConfig:
    """An import that was interrupted when only the first shard of ``stage`` was written."""
    chosen = settings(tmp_path, theirs, **changes)
    pipeline.run_stage(chosen, quiet(), "generate")
    run = Run.existing(chosen.run)
    run.stage(1, stage).remove("_manifest.json")
    for number in run.stage(1, stage).shards()[1:]:
        run.stage(1, stage).remove(shard_name(number))
    if stage == "samples":
        run.stage(1, "pairs").remove()
    return chosen


@pytest.mark.parametrize("stage", ["samples", "pairs"])
@pytest.mark.parametrize("change", ["fewer", "one text", "another file"])
def test_records_changed_before_a_resume_are_never_mixed(tmp_path, theirs, stage, change):
    chosen = stopped(tmp_path, theirs, stage)
    lines = theirs.read_text().splitlines()
    changed = {
        "fewer": lines[5:],
        "one text": [lines[0].replace("Cat 0.", "Cow 0."), *lines[1:]],
        "another file": [json.dumps(record(number)) for number in range(20, 33)],
    }[change]
    theirs.write_text("".join(f"{line}\n" for line in changed))
    pipeline.run_stage(chosen, quiet(), "generate")
    fresh = settings(tmp_path, theirs, run=str(tmp_path / "fresh"))
    pipeline.run_stage(fresh, quiet(), "generate")
    resumed, expected = Run.existing(chosen.run), Run.existing(fresh.run)
    for table, schema in (("samples", schemas.SAMPLES), ("pairs", schemas.PAIRS)):
        assert rows(resumed, table, schema) == rows(expected, table, schema)
        assert resumed.stage(1, table).shards() == expected.stage(1, table).shards()
        assert rows(resumed, f"errors/{table}", schemas.ERRORS) == rows(expected, f"errors/{table}", schemas.ERRORS)
        told, count = resumed.manifest(1, table), len(rows(resumed, table, schema))
        assert told.rows_out == count
        assert told.rows_failed == len(rows(resumed, f"errors/{table}", schemas.ERRORS))


def test_a_resume_excludes_the_images_of_the_current_evaluation_set(tmp_path, theirs):
    chosen = stopped(tmp_path, theirs, "pairs", evaluate=evaluated_on(tmp_path, theirs, (8, 9)))
    (tmp_path / "evaluated" / "other-8.jpeg").unlink()
    evaluate = evaluated_on(tmp_path, theirs, (0, 9))
    run = Run.existing(chosen.run)
    pipeline.remove_from(run, "evaluation")
    pipeline.run_stage(settings(tmp_path, theirs, evaluate=evaluate), quiet(), "generate")
    assert [row["low"]["text"][4] for row in rows(run, "pairs", schemas.PAIRS)] == list("123568")


def test_records_changed_during_an_import_are_refused(tmp_path, theirs, monkeypatch):
    from ray_jobs.stages import import_pairs

    class Changing(import_pairs.ImportedPairs):
        def __call__(self, found):
            theirs.write_text(theirs.read_text().replace("Dog", "Cow"))
            return super().__call__(found)

    chosen = settings(tmp_path, theirs)
    with monkeypatch.context() as changing:
        changing.setattr(import_pairs, "ImportedPairs", Changing)
        with pytest.raises(StageError, match=r"theirs\.jsonl was changed while it was imported; run the import again"):
            pipeline.run_stage(chosen, quiet(), "generate")
    pipeline.run_stage(chosen, quiet(), "generate")
    assert {row["high"]["text"][:3] for row in rows(Run.existing(chosen.run), "pairs", schemas.PAIRS)} == {"Cow"}


def test_too_many_unusable_records_fail_the_stage_and_the_first_is_shown(tmp_path, theirs):
    strict = settings(tmp_path, theirs, max_failed_fraction=0.05)
    with pytest.raises(StageError, match=r"'samples': 1 of 10 rows failed, more than.*first: .*row 4: the chosen"):
        pipeline.run_stage(strict, quiet(), "generate")


def test_a_changed_import_is_refused_on_an_existing_run(tmp_path, theirs):
    pipeline.run_stage(settings(tmp_path, theirs), quiet(), "generate")
    other = settings(tmp_path, theirs, imported={"format": "trl", "path": str(theirs), "images": "/i"})
    with pytest.raises(RunError, match=r"imported\.images: None -> /i.*--restart samples"):
        pipeline.run_stage(other, quiet(), "generate")


def test_imported_pairs_allow_one_round_and_one_strategy(tmp_path, theirs):
    with pytest.raises(ConfigError, match="'imported' pairs are used in one round, but 'rounds' is 2; set 'rounds: 1'"):
        settings(tmp_path, theirs, rounds=2)
    with pytest.raises(ConfigError, match=r"'select\.strategy: coverage' cannot be used with 'imported' pairs"):
        settings(tmp_path, theirs, generate={"samples": 1}, select={"strategy": "coverage"})
    assert settings(tmp_path, theirs, score={"with_generation": True}).imported  # it only applies to the evaluation
    with pytest.raises(ConfigError, match=r"imported\.format: Input should be 'trl', 'ms-swift'"):
        settings(tmp_path, theirs, imported={"format": "csv", "path": "a"})


def test_the_commands_name_the_next_command(tmp_path, theirs):
    from typer.testing import CliRunner

    from ray_jobs.cli import app

    given = ["--run", str(tmp_path / "run"), "--format", "trl", "--set", "max_failed_fraction=0.2"]
    done = CliRunner().invoke(app, ["import", *given, "--from", os.path.relpath(theirs), "--images", "/pictures"])
    assert done.exit_code == 0, done.output
    assert f"Next:   jsfree score --config {tmp_path}/run/config.yaml" in done.output
    kept = config.load(tmp_path / "run" / "config.yaml")
    assert (kept.imported.path, kept.imported.images) == (str(theirs), "/pictures")
    assert kept.run == str(tmp_path / "run")
    with pytest.raises(RunError, match="has no selected pairs yet; first do `jsfree select`"):
        CliRunner().invoke(
            app, ["export", "--run", str(tmp_path / "run"), "--format", "trl", "--out", "x"], catch_exceptions=False
        )
