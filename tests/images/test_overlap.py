"""Evaluation images are recognized by content, and the report derives the overlap from the tables of the run."""

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jsfree import config, schemas
from jsfree.errors import StorageError
from jsfree.images.overlap import Overlap, hash_images, measure_overlap, read_hashes, shards_with
from jsfree.images.sources import evaluation_samples, training_samples
from jsfree.miniworld import world
from jsfree.publishing.model_card import card
from jsfree.report.page import render
from jsfree.run.folder import Folder, shard_name
from jsfree.stages.captioning import PairGenerator
from jsfree.stages.scored_captioning import ScoredPairGenerator
from tests.support import example_run

NEW, SHARED = range(3), range(3, 7)


def picture(index: int) -> bytes:
    return world.png_bytes(world.scene("development", index))


@pytest.fixture
def evaluated(tmp_path) -> dict:
    """Settings for an evaluation on a folder of pictures, one of which is damaged."""
    folder = tmp_path / "evaluated"
    folder.mkdir()
    for index in SHARED:
        (folder / f"{index}.png").write_bytes(picture(index))
    (folder / "damaged.png").write_bytes(picture(0)[:99])
    return {"source": {"kind": "folder", "path": str(folder), "count": 5}}


def hashes_of(settings: config.RunConfig, folder: Folder) -> str:
    output = hash_images(evaluation_samples(settings), settings.evaluate.source)
    folder.write_table(shard_name(0), pa.Table.from_pylist(output.rows, schema=schemas.EVALUATION_HASHES))
    return folder.uri


def as_json(folder: Path) -> dict:
    """Copies with other names, each in its own folder."""
    for index in (*NEW, *SHARED):
        (folder / str(index)).mkdir(parents=True)
        (folder / str(index) / "photo.jpg").write_bytes(picture(index))
    rows = [{"image": f"{index}/photo.jpg"} for index in (*NEW, *SHARED)]
    (folder / "mix.json").write_text(json.dumps(rows))
    return {"kind": "llava_json", "path": str(folder / "mix.json")}


def as_links(folder: Path) -> dict:
    """Symbolic links to the evaluation images, next to regular files."""
    folder.mkdir()
    for index in NEW:
        (folder / f"{index}.png").write_bytes(picture(index))
    for index in SHARED:
        (folder / f"x{index}.webp").symlink_to(folder.parent / "evaluated" / f"{index}.png")
    return {"kind": "folder", "path": str(folder)}


def as_table(folder: Path) -> dict:
    folder.mkdir()
    images = [picture(index) for index in (*NEW, *SHARED)]
    pq.write_table(pa.table({"image": images, "id": [f"row-{n}" for n in range(7)]}), folder / "a.parquet")
    return {"kind": "parquet", "path": str(folder / "a.parquet")}


@pytest.mark.parametrize("source", [as_json, as_links, as_table])
@pytest.mark.parametrize("generator", [PairGenerator, ScoredPairGenerator])
def test_evaluation_images_are_excluded_under_any_name(tmp_path, evaluated, source, generator):
    given = {"source": {**source(tmp_path / "given"), "count": 7}, "evaluate": evaluated}
    settings = config.build({**given, "generate": {"decoding": {"max_new_tokens": 8}}}, where="test")
    hashes = hashes_of(settings, Folder(str(tmp_path / "hashes")))
    samples = training_samples(settings, 1)
    output = generator(settings, "miniworld:captioner", 1, evaluation_hashes=hashes)(samples)
    contents = {hashlib.sha256(picture(index)).hexdigest() for index in NEW}
    assert {row["image"]["sha256"] for row in output.rows} == contents
    assert [error["kind"] for error in output.errors] == ["evaluation_image"] * len(SHARED)
    assert output.excluded == len(SHARED)
    assert all("is in the evaluation set" in error["message"] for error in output.errors)
    if output.second_stage is not None:
        assert len(output.second_stage.rows) == len(NEW)
    nothing = generator(settings, "miniworld:captioner", 1, evaluation_hashes=hashes)(
        [sample for sample in samples if sample["sample_id"] in {error["sample_id"] for error in output.errors}]
    )
    assert (nothing.rows, nothing.tokens) == ([], 0)
    assert len(generator(settings, "miniworld:captioner", 1)(samples).rows) == 7


def test_undecodable_evaluation_images_are_not_hashed(evaluated):
    output = hash_images(evaluation_samples(config.build({"evaluate": evaluated}, where="test")), limits(evaluated))
    assert {row["sha256"] for row in output.rows} == {hashlib.sha256(picture(index)).hexdigest() for index in SHARED}
    assert [(error["kind"], error["sample_id"].partition("@")[0]) for error in output.errors] == [
        ("undecodable", "damaged.png")
    ]


def limits(evaluated: dict) -> config.Source:
    return config.build({"evaluate": evaluated}, where="test").evaluate.source


# The report of a finished run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return example_run.build(tmp_path_factory.mktemp("overlap") / "run", rounds=2, errors=False)


def rewritten(run, tmp_path, stage: str, schema: pa.Schema, change) -> example_run.Run:
    """Copies the run and changes the first row of a stage in round 1."""
    import shutil

    shutil.copytree(run.folder.path, tmp_path / "copy")
    copy = type(run)(run.config.model_copy(update={"run": str(tmp_path / "copy")}))
    folder = copy.stage(1, stage)
    rows = folder.read_table(shard_name(0), schema).to_pylist()
    change(rows[0])
    folder.write_table(shard_name(0), pa.Table.from_pylist(rows, schema=schema))
    return copy


def test_the_report_states_that_no_round_trained_on_evaluation_images(run):
    assert measure_overlap(run, 2) == Overlap(0, 0, True)
    for text in (render(run), card(run, 1), card(run, 2)):
        assert "No round trained on any of them (SHA-256 of the image files)." in text


def test_an_image_in_training_and_evaluation_is_reported(run, tmp_path):
    caption = run.stage(1, "captions/m0-greedy").read_table(shard_name(0), schemas.CAPTIONS).to_pylist()[0]
    known = caption["image"]["sha256"]
    copy = rewritten(run, tmp_path, "selected", schemas.SELECTED, lambda row: row["image"].update(sha256=known))
    assert measure_overlap(copy, 2) == Overlap(1, 0, True)
    for text in (render(copy), card(copy, 2)):
        assert "1 of them was also trained on" in text
        assert "No round trained" not in text
    assert shards_with(copy.stage(1, "selected"), {known}) == [0]
    assert shards_with(run.stage(1, "selected"), {known}) == []


@pytest.mark.parametrize(
    ("stage", "schema"), [("selected", schemas.SELECTED), ("captions/m0-greedy", schemas.CAPTIONS)]
)
def test_the_overlap_is_reported_as_unknown_without_hashes(run, tmp_path, stage, schema):
    copy = rewritten(run, tmp_path, stage, schema, lambda row: row["image"].update(sha256=None))
    assert not measure_overlap(copy, 2).is_known
    for text in (render(copy), card(copy, 2)):
        assert "Whether any of them was also trained on is not known." in text
        assert "No round trained" not in text


def test_excluded_images_are_counted_but_not_as_failures(run, tmp_path):
    error = {"sample_id": "a", "stage": "pairs", "kind": "evaluation_image", "message": "image a is excluded"}
    copy = rewritten(run, tmp_path, "selected", schemas.SELECTED, lambda row: None)
    example_run.write_rows(copy, 1, "pairs", [], schemas.PAIRS, excluded=3)
    errors = copy.round(1) / "errors" / "pairs"
    errors.write_table(shard_name(0), pa.Table.from_pylist([error], schema=schemas.ERRORS))
    page = render(copy)
    told = "3 training images that are also in the evaluation set were excluded."
    assert told in page
    assert told in card(copy, 2)
    assert "None: no row failed." in page
    assert "is also in the evaluation set: 3 (kind <code>evaluation_image</code>" in page


def test_a_damaged_or_missing_hash_table_is_named_in_the_error(tmp_path):
    folder = Folder(str(tmp_path / "hashes"))
    folder.write(shard_name(0), b"PAR1")
    with pytest.raises(StorageError, match=r"hashes/shard-00000\.parquet cannot be read"):
        read_hashes(folder.uri)
    with pytest.raises(StorageError, match="absent has no hashes of evaluation images"):
        read_hashes(str(tmp_path / "absent"))
