"""The report's section of benchmarks."""

import pytest

from jsfree import schemas
from jsfree.evaluation.benchmarks import vocabulary
from jsfree.evaluation.benchmarks.base import Answer
from jsfree.evaluation.benchmarks.chair import Chair
from jsfree.evaluation.benchmarks.measuring import CountTable
from jsfree.evaluation.benchmarks.miniworld_painter import ScenePainter
from jsfree.evaluation.benchmarks.reconstruction import Reconstruction
from jsfree.evaluation.benchmarks.results import Result
from jsfree.report.benchmarks import benchmark_views
from jsfree.report.page import render
from tests.report.test_page import assert_self_contained
from tests.support import example_run
from tests.support.coco_files import write_coco


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose m1 names no absent object any more."""
    folder = tmp_path_factory.mktemp("run")
    built = example_run.build(folder / "one")
    data = write_coco(folder / "data", {number: ["dog"] for number in range(1, 21)}, {})
    suite, tables = Chair(vocabulary.built_in()), {}
    for model, text in (("m0", "A dog and a <cat>. A cat and a kite."), ("m1", "A dog.")):
        answers = [Answer(str(number), str(number), text) for number in range(1, 21)]
        measured = suite.score(data, answers)
        result = Result(suite, model, answers, measured, {"beams": 1}, 20, 0, dict(tables), resamples=100)
        tables[model] = CountTable.of(result.rows)
        built.folder.write_json(f"evaluation/{model}/chair.json", result.as_json())
    return built


def test_the_table_has_all_models_and_marks_differences(run):
    (view,) = benchmark_views(run)
    assert (view.title, view.models, view.counts["images"]) == ("CHAIR", ["m0", "m1"], 20)
    rates = {line.metric.name: line.cells for line in view.lines}
    before, after = rates["CHAIRs"]
    assert (before.value, after.value) == ("100.0", "0.0")
    assert after.differs
    assert not before.differs
    assert not rates["recall"][1].differs


def test_the_page_shows_the_section(run):
    html = render(run)
    assert '<section id="benchmarks">' in html
    assert "stack: original" in html
    assert_self_contained(html)


def test_a_run_without_benchmarks_has_no_section(tmp_path):
    assert '<section id="benchmarks">' not in render(example_run.build(tmp_path / "run"))


def test_the_page_shows_images_beside_what_was_made_of_their_captions(tmp_path):
    run = example_run.build(tmp_path / "run")
    rows = [example_run.sample(run, "test", number) for number in range(3)]
    example_run.write_rows(run, 1, "evaluation", rows, schemas.SAMPLES)
    suite = Reconstruction(rows, ScenePainter(), run.config, run.folder / "evaluation" / "reconstruction")
    for model, text in (("m0", "There is a red <cup>."), ("m1", "There is a blue dog.")):
        answers = [Answer(row["sample_id"], row["image"]["id"], text) for row in rows]
        result = Result(suite, model, answers, suite.score(tmp_path, answers), {"beams": 1}, 3, resamples=10)
        run.folder.write_json(f"evaluation/{model}/reconstruction.json", result.as_json())
    html = render(run)
    section = html.partition('<section id="reconstructions">')[2].partition("</section>")[0]
    assert section.count("<img ") == 3 * 3
    assert "There is a blue dog." in section
    assert "&lt;cup&gt;" in section
    assert_self_contained(html)
