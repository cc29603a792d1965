"""Exports: refused requests, skipped pairs, file sizes and target folders."""

import json
import os
import shutil
from pathlib import Path

import pytest

from jsfree import schemas
from jsfree.config import Imported, Source
from jsfree.errors import ConfigError, RunError
from jsfree.exchange import export, exporting, preferences
from jsfree.report.page import build_report
from jsfree.run.run import Run
from tests.support import example_run


def test_an_impossible_export_is_refused_before_writing(embedded, tmp_path):
    for name, placement, told in [
        ("ms-swift", "embed", "ms-swift supports copy or reference; choose one of these, or the format trl or rlaif-v"),
        (
            "rlaif-v",
            "copy",
            "rlaif-v supports embed; choose one of these, or the format trl or ms-swift or llama-factory or povid",
        ),
        ("trl", "reference", r"is in the run's own tables, so there is no file to refer to; use --images copy"),
    ]:
        with pytest.raises(ConfigError, match=told):
            export(embedded, name, str(tmp_path / "out"), placement=placement)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="out is not empty; choose another --out"):
        export(embedded, "trl", str(tmp_path / "out"))
    with pytest.raises(RunError, match="has no selected pairs in round 2; first do `jsfree select`"):
        export(embedded, "trl", str(tmp_path / "other"), number=2)


def test_exporting_a_run_without_pairs_names_the_missing_stage(embedded, tmp_path):
    run = Run.open(embedded.config.model_copy(update={"run": str(tmp_path / "run")}))
    with pytest.raises(RunError, match="has no scored pairs yet; first do `jsfree score`"):
        export(run, "trl", str(tmp_path / "out"), pairs="scored")


def test_the_last_round_with_selected_pairs_is_exported(tmp_path):
    run = example_run.build(tmp_path / "run", rounds=2, errors=False)
    done = export(run, "povid", str(tmp_path / "out"))
    assert done.figures["round"] == 2
    assert "m1 of miniworld:captioner" in (tmp_path / "out" / "provenance.jsonl").read_text()


def test_an_image_inside_a_tar_file_cannot_be_referenced(referring, rows_of, tmp_path):
    run = Run.open(referring.config.model_copy(update={"run": str(tmp_path / "run")}))
    rows = rows_of(referring)[:2]
    rows[1]["image"]["uri"] = "/data/shard.tar#offset=512&length=100"
    example_run.write_rows(run, 1, "selected", rows, schemas.SELECTED)
    with pytest.raises(ConfigError, match="is inside a tar file, so there is no file"):
        export(run, "povid", str(tmp_path / "out"), placement="reference")


def test_a_pair_without_a_usable_image_is_skipped_and_counted(referring, rows_of, tmp_path):
    run = Run.open(referring.config.model_copy(update={"run": str(tmp_path / "run")}))
    rows = rows_of(referring)[:3]
    rows[1]["image"]["uri"] = str(tmp_path / "gone.png")
    example_run.write_rows(run, 1, "selected", rows, schemas.SELECTED)
    done = export(run, "trl", str(tmp_path / "out"))
    assert (done.figures["exported"], done.figures["left_out"]) == (2, 1)
    found = [each.chosen for each in preferences(Imported(format="trl", path=done.uri))]
    assert found == [rows[0]["chosen"]["text"], rows[2]["chosen"]["text"]]
    assert "| left out here, image not usable | 1 |" in (tmp_path / "out" / "README.md").read_text()
    example_run.write_rows(run, 1, "selected", rows[1:2], schemas.SELECTED)
    with pytest.raises(RunError, match=r"none of the selected pairs of round 1 can be exported.*gone\.png.*not exist"):
        export(run, "trl", str(tmp_path / "other"))


def test_large_sets_are_split_into_several_files(embedded, said, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "ROWS_PER_FILE", 10)
    export(embedded, "trl", str(tmp_path / "rows"))
    files = sorted(path.name for path in (tmp_path / "rows" / "data").iterdir())
    assert len(files) == -(-len(expected) // 10)
    assert files[:2] == ["train-00000.parquet", "train-00001.parquet"]
    assert said(preferences(Imported(format="trl", path=str(tmp_path / "rows")))) == expected
    monkeypatch.setattr(exporting, "BYTES_PER_FILE", 1)
    export(embedded, "trl", str(tmp_path / "bytes"))
    assert len(list((tmp_path / "bytes" / "data").iterdir())) == len(expected)


def test_scored_pairs_get_the_roles_that_selection_assigns(embedded, tmp_path):
    scored = embedded.stage(1, "scored").read_shards(schemas.SCORED).to_pylist()
    different = [row for row in scored if row["low"]["text"] != row["high"]["text"]]
    done = export(embedded, "povid", str(tmp_path / "swap"), pairs="scored")
    assert done.figures["exported"] == len(different) < len(scored)
    found = {each.id: each for each in preferences(Imported(format="povid", path=done.uri))}
    for row in different:
        assert found[row["image"]["id"]].chosen == row["high" if row["inverted"] else "low"]["text"]
    dropping = embedded.config.model_copy(
        update={"select": embedded.config.select.model_copy(update={"inverted": "drop"})}
    )
    without = export(Run(dropping), "povid", str(tmp_path / "drop"), pairs="scored").figures
    assert without["exported"] == sum(not row["inverted"] for row in different)
    assert without["inverted_share"] == 0


def test_provenance_is_written_for_every_record(embedded, rows_of, tmp_path):
    export(embedded, "trl", str(tmp_path / "out"))
    told = [json.loads(line) for line in (tmp_path / "out" / "provenance.jsonl").read_text().splitlines()]
    rows = rows_of(embedded)
    assert [each["gap"] for each in told] == [row["gap"] for row in rows]
    assert told[0]["chosen"] == {"ratio": rows[0]["chosen"]["ratio"], "score": rows[0]["chosen"]["score"]}
    assert (told[0]["source"], told[0]["captioner"]) == ("miniworld", "miniworld:captioner")


def test_a_set_can_be_written_to_any_filesystem(embedded, expected, said):
    done = export(embedded, "rlaif-v", "memory://exported")
    assert said(preferences(Imported(format="rlaif-v", path=done.uri))) == expected


def test_an_export_into_a_run_or_its_source_is_refused(embedded, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(Path(embedded.folder.path) / "round-1")
    monkeypatch.chdir(tmp_path)
    for refused in (f"{embedded.folder.uri}/export", "link/export", f"{embedded.folder.uri}/../run/round-2/model"):
        with pytest.raises(ConfigError, match="belongs to the run"):
            export(embedded, "trl", refused)
    (tmp_path / "images" / "sub").mkdir(parents=True)
    (tmp_path / "alias").symlink_to(tmp_path / "images")
    source = Source(kind="folder", path=str(tmp_path / "images"))
    reading = Run(embedded.config.model_copy(update={"source": source}))
    for refused in ("images/export", "alias/sub", "alias/../images/x"):
        with pytest.raises(ConfigError, match=r"the folder is an input of the run \(source.path\)"):
            export(reading, "trl", refused)
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(RunError, match="is not empty"):
        export(embedded, "trl", "file")
    assert [*(tmp_path / "images").rglob("*")] == [tmp_path / "images" / "sub"]


def test_a_moved_run_is_exported_and_reported_from_its_new_folder(embedded, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stored = embedded.config.model_copy(update={"run": "runs/first"})
    shutil.copytree(embedded.folder.path, "moved")
    Path("moved/config.yaml").write_text(stored.to_yaml(), encoding="utf-8")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    run = Run.existing("../moved")
    assert export(run, "trl", "out").figures["exported"] == embedded.stage(1, "selected").count_rows()
    page = build_report(run)
    assert os.path.samefile(page, tmp_path / "moved" / "report" / "index.html")
    assert b"Hallucination" in Path(page).read_bytes()
    assert [path.name for path in Path().iterdir()] == ["out"]
