"""Pairs that were exported, imported elsewhere, scored, selected and trained on: with the classes that a run has."""

import io

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from jsfree import schemas
from jsfree.config import build
from jsfree.dpo.loop import Folders, Hooks, Models, train
from jsfree.exchange import export
from jsfree.models.references import WEIGHTS
from jsfree.report.page import build_report
from jsfree.run.run import Run
from jsfree.stages.pair_selection import select_pairs
from jsfree.stages.scoring import ClipScorer
from ray_jobs import pipeline
from ray_jobs.commands.console import Reporter
from tests.support import example_run

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("one_worker")]  # DeepSpeed warns

STEPS = {"pairs_per_step": 4, "pairs_per_worker": 2, "epochs": 1, "learning_rate": 1e-3, "resources": {"replicas": 1}}


def test_imported_pairs_are_scored_selected_and_trained_on(tmp_path):
    theirs = export(example_run.build(tmp_path / "theirs", errors=False), "ms-swift", str(tmp_path / "set"))
    config = build(
        {
            "run": str(tmp_path / "run"),
            "imported": {"format": "ms-swift", "path": theirs.uri},
            "select": {"splits": 4, "first": 4, "last": 4},
            "train": STEPS,
        },
        where="test",
    )
    pipeline.run_stage(config, Reporter(Console(file=io.StringIO())), "generate")
    run = Run.existing(config.run)
    pairs = run.stage(1, "pairs").read_shards(schemas.PAIRS).to_pylist()
    assert len(pairs) == theirs.figures["exported"]
    scored = ClipScorer(config)(pairs)
    assert not scored.errors
    selection = select_pairs(scored.rows, config.select, config.seed)
    assert 0 < selection.facts["inverted"] < len(pairs)  # their order was drawn by a made-up score
    for name, rows, schema in (("scored", scored.rows, schemas.SCORED), ("selected", selection.rows, schemas.SELECTED)):
        example_run.write_rows(run, 1, name, rows, schema, **selection.facts)

    steps: list[dict] = []

    def progress(history, _) -> None:
        steps[:] = [dict(step) for step in history]

    folders = Folders(*(run.stage(1, name) for name in ("reference", "features", "model")))
    seed = Models("miniworld:captioner", "miniworld:captioner", "m0")
    stored = run.stage(1, "selected").read_shards(schemas.SELECTED).to_pylist()
    train(config, stored, seed, folders, Hooks(progress, lambda *_: None, None), "cpu")
    assert len(steps) == len(stored) // 4 > 0
    assert steps[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    name = "language_model.model.layers.0.mlp.up_proj.weight"
    before, after = (
        load_file(folder / "model.safetensors") for folder in (WEIGHTS / "captioner", tmp_path / "run/round-1/model")
    )
    assert not torch.equal(before[name], after[name])

    with open(build_report(run), encoding="utf-8") as page:
        html = page.read()
    assert "Imported as chosen" in html
    assert "CLIP disagreed with the order of the imported pairs" in html
