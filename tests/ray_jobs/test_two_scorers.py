"""MiniWorld scored by its CLIP and by one of another seed, pre-trained briefly: the same in either order of work."""

import io

import pytest
from rich.console import Console

from jsfree import config, schemas
from jsfree.errors import RunError
from jsfree.pretraining.pretrain import Budget, pretrain_clip
from jsfree.run.run import Run
from ray_jobs import pipeline
from ray_jobs.commands.console import Reporter

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

BRIEF = Budget(clip_scenes=600, clip_steps=30, clip_batch=32)


@pytest.fixture(scope="module")
def other_clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "clip"
    pretrain_clip(folder, seed=1, progress=None, budget=BRIEF)
    return str(folder)


def settings(uri, second, *, with_generation=False):
    own = {
        "clip": {"second": None if second is None else {"ref": second}},
        "shard_rows": 24,
        "source": {"count": 72},
        "generate": {"resources": {"replicas": 1}},
        "score": {"with_generation": with_generation, "resources": {"replicas": 1}},
        "evaluate": {"source": {"count": 10}, "modes": {"greedy": {}}},
        "select": {"splits": 1, "first": 1, "last": 1},
    }
    return config.build({"run": str(uri), **own}, where="test")


def selected(settings):
    """Run up to the stage ``select``; return what it printed and the run."""
    shown = io.StringIO()
    for stage in ("generate", "score", "select"):
        pipeline.run_stage(settings, Reporter(Console(file=shown, width=200)), stage)
    return shown.getvalue(), Run.existing(settings.run)


@pytest.fixture(scope="module")
def finished(ray_session, other_clip, tmp_path_factory):
    return selected(settings(tmp_path_factory.mktemp("runs") / "two", other_clip))


def verdicts(row):
    return tuple(row[f"{prefix}low"]["score"] < row[f"{prefix}high"]["score"] for prefix in ("", "second_"))


def test_disagreeing_pairs_are_not_selected_and_the_agreement_is_printed(finished):
    shown, run = finished
    rows = run.stage(1, "scored").read_shards(schemas.scored_schema(0, 2)).to_pylist()
    assert len(rows) == 72
    agreed = {row["sample_id"]: verdicts(row)[0] for row in rows if len(set(verdicts(row))) == 1}
    assert 20 < len(agreed) < 72
    assert [row["inverted"] for row in rows] == [all(verdicts(row)) for row in rows]
    chosen = run.stage(1, "selected").read_shards(schemas.SELECTED).to_pylist()
    assert {row["sample_id"] for row in chosen} <= agreed.keys()
    for row in chosen:
        assert row["chosen"]["text"] == row["high" if agreed[row["sample_id"]] else "low"]["text"]
    facts = run.manifest(1, "selected").facts
    assert f"pairs (Cohen's kappa {facts['agreement']['kappa']:.2f})" in shown


def test_scoring_while_generating_gives_the_same_scores(finished, ray_session, other_clip, tmp_path):
    _, run = finished
    _, other = selected(settings(tmp_path / "run", other_clip, with_generation=True))
    tables = [each.stage(1, "scored").read_shards(schemas.scored_schema(0, 2)).to_pylist() for each in (run, other)]
    first, second = ({row["sample_id"]: row for row in table} for table in tables)
    assert first.keys() == second.keys()
    for name, row in first.items():
        for role in ("low", "high", "second_low", "second_high"):
            assert row[role]["score"] == pytest.approx(second[name][role]["score"], abs=1e-5)


def test_another_second_scorer_requires_scoring_again(finished, ray_session, other_clip):
    _, run = finished
    with pytest.raises(RunError, match=r"clip\.second"):
        pipeline.run_stage(settings(run.folder.uri, None), Reporter(Console(file=io.StringIO())), "score", 1)
