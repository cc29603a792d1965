"""The stage that scores pairs loads the configured judge, and stages that CLIP scores do not depend on that choice."""

import io

import pytest
from rich.console import Console

from jsfree import config
from jsfree.stages.captioning import PairGenerator
from jsfree.stages.judging import CaptionerJudge
from jsfree.stages.scoring import ClipScorer
from ray_jobs.ablation.planning import PlannedRound, PlannedRun, plan_fingerprints
from ray_jobs.cluster.session import Cluster
from ray_jobs.commands.console import Reporter
from ray_jobs.pipeline import seed_model
from ray_jobs.rounds import Model
from ray_jobs.stages.score import scoring_stage
from tests.stages.test_captioning import sample

PLAIN = config.load(None, ["generate.decoding.max_new_tokens=12"])
JUDGED = config.load(None, ["generate.decoding.max_new_tokens=12", "score.judge=captioner"])


@pytest.mark.parametrize(
    ("settings", "kind"), [(PLAIN, ClipScorer), (JUDGED, CaptionerJudge)], ids=["clip", "captioner"]
)
def test_a_later_round_is_scored_by_the_configured_judge_from_m0(settings, kind):
    seed, later = seed_model(settings), Model("m1", "a folder that does not exist", "other")
    reporter = Reporter(Console(file=io.StringIO()))
    current = PlannedRound(PlannedRun(settings), 2, seed, later, Cluster(settings), reporter)
    scorer = scoring_stage(current, "pairs").build()
    assert isinstance(scorer, kind)
    (row,) = scorer(PairGenerator(settings, "miniworld:captioner", 1)([sample(0)]).rows).rows
    assert all(abs(each["score"]) < 1 for role in ("low", "high") for each in row[role]["sentences"])


def test_the_judge_changes_what_is_made_from_scores_and_nothing_else():
    plain, judged, asked = (
        plan_fingerprints(each) for each in (PLAIN, JUDGED, config.load(None, ["score.question=True? {sentence}"]))
    )
    changed = {stage for _, stage in plain if plain[1, stage] != judged[1, stage]}
    assert {"scored", "selected", "train"} <= changed
    assert not changed & {"samples", "pairs", "evaluation", "captions/m0-greedy", "captions_scored/m0-greedy"}
    assert asked[1, "captions_scored/m0-greedy"] == plain[1, "captions_scored/m0-greedy"]
