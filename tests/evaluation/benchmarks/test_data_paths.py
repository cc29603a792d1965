"""Suites read their files from an object store as from a disk."""

import fsspec
import pytest

from jsfree.errors import SourceError
from jsfree.evaluation.benchmarks.base import Answer
from jsfree.evaluation.benchmarks.data_paths import RemotePath, data_path
from jsfree.evaluation.benchmarks.registry import SuiteOptions, build
from jsfree.miniworld.exporting import export_scenes

URI = "memory://bucket/data"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The files of all suites in a local folder and in a store."""
    local = tmp_path_factory.mktemp("data") / "all"
    export_scenes("all", "test", 0, 3, local)
    store = fsspec.filesystem("memory")
    store.put(str(local), "/bucket/data", recursive=True)
    yield data_path(f"file://{local}"), data_path(URI)
    store.rm("/bucket", recursive=True)


@pytest.mark.parametrize("name", ["chair", "halbench", "pope", "amber", "mmhal", "ic", "shortanswers", "text"])
def test_questions_and_images_are_the_same(folders, name):
    options = SuiteOptions(vocabulary=str(folders[0] / "coco" / "synonyms.txt"))
    suite = build(name, options)
    here, there = (suite.questions(suite.folder(data)) for data in folders)
    assert [(one.question_id, one.prompt) for one in here] == [(one.question_id, one.prompt) for one in there]
    for one, other in zip(here, there, strict=True):
        assert one.image["bytes"] == other.image["bytes"]
        if one.image["uri"] is not None:
            assert other.image["uri"].startswith(URI)
            with fsspec.open(other.image["uri"]) as file:
                assert file.read() == data_path(one.image["uri"]).read_bytes()


def test_answers_are_scored_alike(folders):
    suite = build("chair", SuiteOptions(vocabulary=str(folders[0] / "coco" / "synonyms.txt"), stack="lemmas"))
    answers = [Answer(f"{number}", f"{number}", "There is a red cup and a dog.") for number in range(3)]
    here, there = (suite.score(suite.folder(data), answers) for data in folders)
    assert here.rows == there.rows


def test_what_is_missing_is_named():
    absent = RemotePath("memory://bucket/absent/")
    assert not absent.exists()
    assert not absent.is_dir()
    with pytest.raises(SourceError, match="memory://bucket/absent has no val2014"):
        build("chair", SuiteOptions()).questions(absent)
