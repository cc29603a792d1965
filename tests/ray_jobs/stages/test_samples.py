"""The samples of a run come from a single listing, despite interruptions and new files."""

import io
import json
import os

import pytest
from PIL import Image
from rich.console import Console

from jsfree import config, schemas
from jsfree.errors import StageError
from jsfree.images.sources import training_samples
from jsfree.report import reading
from jsfree.run.folder import Folder, shard_name
from jsfree.run.run import Manifest, Run
from ray_jobs.cluster.session import Cluster
from ray_jobs.commands.console import Reporter
from ray_jobs.rounds import Model, Round
from ray_jobs.stages.evaluate import list_evaluation_samples
from ray_jobs.stages.generate import list_samples

HELD_OUT = {"kind": "miniworld", "split": "test", "count": 2}


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    add(folder, range(60))
    return folder


def add(folder, numbers):
    for number in numbers:
        Image.new("RGB", (16, 16), (number, 0, 0)).save(folder / f"{number}.png")


def settings(tmp_path, **source):
    source = {"kind": "folder", "count": 20, **source}
    base = {"run": str(tmp_path / "run"), "shard_rows": 4, "source": source, "evaluate": {"source": HELD_OUT}}
    return config.build(base, where="test")


def current_round(chosen) -> Round:
    run = Run.open(chosen)
    seed = Model("m0", "miniworld:captioner", "0")
    return Round(run, 1, seed, seed, Cluster(chosen), Reporter(Console(file=io.StringIO())))


def rows(run: Run, stage="samples", schema=schemas.SAMPLES) -> list[dict]:
    return Folder(f"{run.folder.uri}/round-1/{stage}").read_shards(schema).to_pylist()


class Killed(BaseException):
    """Simulates a killed process; not an ``Exception``, so that no handler catches it."""


def interrupted(chosen, monkeypatch, after):
    """List the samples, interrupted once ``after`` shards are written."""
    written = []
    real = Folder.write_table

    def write(self, name, table, facts=None):
        if len(written) == after:
            raise Killed
        written.append(name)
        real(self, name, table, facts)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "write_table", write)
        with pytest.raises(Killed):
            list_samples(current_round(chosen))


def test_files_added_between_attempts_give_samples_of_a_single_listing(pictures, tmp_path, monkeypatch):
    chosen = settings(tmp_path, path=str(pictures))
    interrupted(chosen, monkeypatch, after=3)
    before = [sample["sample_id"] for sample in rows(current_round(chosen).run)]
    assert len(before) == 12
    add(pictures, range(100, 140))
    manifest = list_samples(current_round(chosen))
    expected = [sample["sample_id"] for sample in training_samples(chosen, 1)]
    found = [sample["sample_id"] for sample in rows(current_round(chosen).run)]
    assert found == expected
    assert found[:12] != before
    assert len(set(found)) == 20
    assert (manifest.rows_in, manifest.rows_out, manifest.rows_failed) == (20, 20, 0)


def test_fewer_images_on_resume_leave_no_stale_shard(pictures, tmp_path, monkeypatch):
    chosen = settings(tmp_path, path=str(pictures), count=None)
    interrupted(chosen, monkeypatch, after=14)
    for number in range(50):
        (pictures / f"{number}.png").unlink()
    manifest = list_samples(current_round(chosen))
    assert manifest.rows_out == len(rows(current_round(chosen).run)) == 10


def test_shards_of_the_same_listing_are_kept(pictures, tmp_path, monkeypatch):
    chosen = settings(tmp_path, path=str(pictures))
    interrupted(chosen, monkeypatch, after=3)
    folder = current_round(chosen).stage("samples")
    written = [os.stat(f"{folder.path}/{shard_name(number)}").st_mtime_ns for number in range(3)]
    manifest = list_samples(current_round(chosen))
    assert [os.stat(f"{folder.path}/{shard_name(number)}").st_mtime_ns for number in range(3)] == written
    assert manifest.rows_out == len(rows(current_round(chosen).run)) == 20
    add(pictures, range(100, 140))  # a finished stage is kept even if its source changes
    assert list_samples(current_round(chosen)) == manifest


def test_shards_without_a_listing_are_rewritten(pictures, tmp_path, monkeypatch):
    chosen = settings(tmp_path, path=str(pictures))
    interrupted(chosen, monkeypatch, after=3)
    current_round(chosen).stage("samples").remove("_listing.json")
    add(pictures, range(100, 140))
    list_samples(current_round(chosen))
    assert [row["sample_id"] for row in rows(current_round(chosen).run)] == [
        sample["sample_id"] for sample in training_samples(chosen, 1)
    ]


def mix(pictures, bad):
    """Source settings of a LLaVA JSON file of the pictures, with ``bad`` unusable rows in the middle."""
    odd = [None, float("nan"), ["0.png"], "0.png", {"image": 3}, {"image": "a\ud83d.png"}, {"image": "../0.png"}]
    good = [{"image": f"{number}.png"} for number in range(60)]
    (pictures / "mix.json").write_text(json.dumps(good[:30] + odd[:bad] + good[30:]))
    return {"kind": "llava_json", "path": str(pictures / "mix.json")}


def test_rows_without_a_usable_image_are_counted_as_error_rows(pictures, tmp_path):
    chosen = settings(tmp_path, **mix(pictures, 7)).model_copy(update={"max_failed_fraction": 0.2})
    current = current_round(chosen)
    manifest = list_samples(current)
    assert (manifest.rows_in, manifest.rows_out, manifest.rows_failed) == (27, 20, 7)
    assert len(rows(current.run)) == 20
    errors = rows(current.run, "errors/samples", schemas.ERRORS)
    assert [row["sample_id"] for row in errors] == [f"mix.json:{row}" for row in range(30, 37)]
    assert [row["kind"] for row in errors] == ["malformed"] * 6 + ["outside"]
    assert {row["stage"] for row in errors} == {"samples"}
    assert all(row["message"].startswith(f"{pictures}/mix.json, row ") for row in errors)
    assert {(each.stage, each.kind, each.rows) for each in reading.failures(current.run, [1])} == {
        ("samples", "malformed", 6),
        ("samples", "outside", 1),
    }


def test_too_many_error_rows_fail_the_stage_and_corrected_rows_are_removed(pictures, tmp_path):
    chosen = settings(tmp_path, **mix(pictures, 4)).model_copy(update={"max_failed_fraction": 0.05})
    with pytest.raises(StageError, match=r"'samples': 4 of the 64 rows .*\(0\.05\).*mix\.json, row 30: is null"):
        list_samples(current_round(chosen))
    mix(pictures, 2)
    manifest = list_samples(current_round(chosen))
    assert (manifest.rows_out, manifest.rows_failed) == (20, 2)
    assert len(rows(current_round(chosen).run, "errors/samples", schemas.ERRORS)) == 2


def test_unusable_evaluation_images_are_error_rows(pictures, tmp_path):
    chosen = settings(tmp_path, **mix(pictures, 3))
    source = chosen.source.model_copy(update={"count": 10})
    chosen = chosen.model_copy(
        update={"evaluate": chosen.evaluate.model_copy(update={"source": source}), "max_failed_fraction": 0.1}
    )
    current = current_round(chosen)
    manifest: Manifest = list_evaluation_samples(current)
    assert (manifest.rows_in, manifest.rows_out, manifest.rows_failed) == (13, 10, 3)
    assert len(rows(current.run, "errors/evaluation", schemas.ERRORS)) == 3
    taken = {row["sample_id"] for row in rows(current.run, "evaluation")}
    assert not taken & {sample["sample_id"] for sample in training_samples(chosen, 1)}


def test_images_whose_names_are_not_utf8_are_listed_and_read(pictures, tmp_path):
    from jsfree.images.decoding import load_image

    os.rename(pictures / "3.png", os.fsencode(pictures) + b"/caf\xe9.png")
    chosen = settings(tmp_path, path=str(pictures), count=60)
    current = current_round(chosen)
    assert list_samples(current).rows_out == 60
    image = next(row["image"] for row in rows(current.run) if row["image"]["id"] == r"caf\xe9.png")
    assert load_image(image, chosen.source)[0].getpixel((0, 0)) == (3, 0, 0)
