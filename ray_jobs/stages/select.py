"""Stage 3: preference pairs sorted by gap and cut into splits, of which a moderate range is kept; on the driver."""

from __future__ import annotations

from typing import Any

from jsfree.run.run import Manifest
from jsfree.stages.coverage_selection import CandidateTable, CoverageSelection, Verification, fit
from jsfree.stages.shard_selection import select_shards
from ray_jobs.rounds import Round
from ray_jobs.stages.score import needs_likelihoods


def select_pairs(current: Round, scored: Manifest) -> Manifest:
    """Preference pairs of the round (paper, section 3.4, "splits"), by the strategy ``select.strategy``."""
    config = current.config

    def work() -> Manifest:
        if config.select.strategy == "coverage":
            facts = _select_by_coverage(current)
        else:
            source, target = current.stage("scored"), current.stage("selected")
            scorers = len(config.clip.scorers)
            facts = select_shards(source, target, config.select, config.seed, config.shard_rows, scorers).facts
        return Manifest(rows_in=facts["pairs"], rows_out=facts["kept"], facts=facts)

    fingerprint = current.fingerprint(scored.fingerprint, config.fingerprint("seed", "select"))
    manifest = current.complete("selected", fingerprint, work)
    if "agreement" in manifest.facts:
        current.reporter.say(f"  {describe_agreement(manifest.facts)}")
    return manifest


def describe_agreement(facts: dict[str, Any]) -> str:
    """One line about the agreement of two scorers, from the facts of a selection."""
    found = facts["agreement"]
    kappa = "undefined" if found["kappa"] is None else f"{found['kappa']:.2f}"
    return (
        f"The scorers agree on {found['share'] or 0:.1%} of {found['pairs']} pairs (Cohen's kappa {kappa});"
        f" {facts['disagreed']} pairs on which they disagree were dropped."
    )


def _select_by_coverage(current: Round) -> dict[str, Any]:
    """Verify with the verifier that the first round fits, and select; return the facts."""
    config = current.config
    likelihoods = current.stage("likelihoods") if needs_likelihoods(config, current.number) else None
    candidates = CandidateTable(current.stage("scored"), likelihoods)
    is_first = current.number == 1
    verification = fit(candidates, config.select) if is_first else Verification.read(current.run.stage(1, "selected"))
    selection = CoverageSelection(candidates, verification, config.select, config.seed, current.number)
    return selection.write(current.stage("selected"), config.shard_rows)
