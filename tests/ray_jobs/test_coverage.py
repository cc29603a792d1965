"""Two rounds by ``select.strategy: coverage``: what each round verifies with, and what is made again on resumption."""

import io
from statistics import fmean

import pytest
from rich.console import Console

from jsfree import config, schemas
from jsfree.run.run import Run
from jsfree.stages.coverage_selection import VERIFIER
from ray_jobs import pipeline
from ray_jobs.commands.console import Reporter

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

SETTINGS = {
    "rounds": 2,
    "shard_rows": 40,
    "source": {"count": 80},
    "generate": {"samples": 2, "resources": {"replicas": 1}},
    "score": {"with_generation": True, "resources": {"replicas": 1}},
    "evaluate": {"source": {"count": 20}, "modes": {"greedy": {}}, "bootstrap": 100},
    "select": {"strategy": "coverage", "first": 2, "last": 10},
    "train": {"objective": "dpo+nll", "sft_weight": 4, "pairs_per_step": 16, "epochs": 2, "learning_rate": 8e-4},
}


@pytest.fixture(scope="module")
def run(ray_session, tmp_path_factory) -> Run:
    path = str(tmp_path_factory.mktemp("runs") / "coverage")
    pipeline.run(config.build({"run": path, **SETTINGS}, where="test"), Reporter(Console(file=io.StringIO())))
    return Run.existing(path)


def test_the_second_round_verifies_with_the_first_verifier_and_the_likelihood_of_m0(run):
    assert run.stage(1, "selected").read_json(VERIFIER) == run.stage(2, "selected").read_json(VERIFIER)
    assert run.manifest(1, "likelihoods") is None
    pairs = run.stage(2, "pairs").read_shards(schemas.PAIRS_WITH_CANDIDATES).to_pylist()
    found = {
        row["sample_id"]: row["logps"]
        for row in run.stage(2, "likelihoods").read_shards(schemas.LIKELIHOODS).to_pylist()
    }
    assert found.keys() == {pair["sample_id"] for pair in pairs}
    differences = [
        abs(own - other)
        for pair in pairs
        for candidate, logps in zip(pair["candidates"], found[pair["sample_id"]], strict=True)
        for own, other in zip(candidate["logps"], logps, strict=True)
    ]
    assert max(differences) > 0.05  # m1 wrote the captions, m0 rates them


@pytest.mark.parametrize("number", [1, 2])
def test_every_selected_pair_has_a_target_and_its_provenance(run, number):
    selected = run.stage(number, "selected").read_shards(schemas.COMPOSED).to_pylist()
    scored = {
        row["sample_id"]: {each["role"]: each for each in row["candidates"]}
        for row in run.stage(number, "scored").read_shards(schemas.SCORED_WITH_CANDIDATES).to_pylist()
    }
    assert len(selected) > 60
    for pair in selected:
        candidates = scored[pair["sample_id"]]
        assert pair["chosen"]["token_ids"] == candidates[pair["provenance"]["chosen"]]["token_ids"]
        if pair["provenance"]["edit"] == "none":
            assert pair["rejected"]["token_ids"] == candidates["high"]["token_ids"]
        said = {part["text"] for each in candidates.values() for part in each["sentences"]}
        assert {edit["text"] for edit in pair["target"]["edits"]} <= said
        kept = [edit["text"] for edit in pair["target"]["edits"] if edit["action"] in ("kept", "added")]
        assert pair["target"]["text"] == " ".join(kept)


def test_training_logs_the_nll_of_the_targets(run):
    steps = run.stage(1, "train").read_json("steps.json")
    first, second = steps[: len(steps) // 2], steps[len(steps) // 2 :]  # epochs of nearly the same pairs
    assert fmean(step["nll"] for step in second) < 0.95 * fmean(step["nll"] for step in first)
    assert steps[0]["loss"] == pytest.approx(0.6931, abs=1e-3)


def test_a_finished_run_makes_nothing_again(run):
    said = io.StringIO()
    pipeline.run(run.config, Reporter(Console(file=said, width=120)))
    stages = [line for line in said.getvalue().splitlines() if " rows" in line]
    assert len(stages) > 10
    assert all("done before" in line for line in stages)
