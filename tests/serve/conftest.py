"""A finished run, made without training: m0, and a changed model that gives other captions and never emits EOS."""

from dataclasses import dataclass

import pytest
import torch

from jsfree import config
from jsfree.models.loading import Captioner, load_captioner
from jsfree.models.saving import publish_captioner
from jsfree.run.run import Manifest, Run
from tests.support import asking


@dataclass(frozen=True)
class FinishedRun:
    run: Run
    before: Captioner
    after: Captioner


@pytest.fixture(scope="session")
def finished_run(captioner, tmp_path_factory) -> FinishedRun:
    path = tmp_path_factory.mktemp("runs") / "served"
    run = Run.open(config.build({"run": str(path), "serve": asking.SERVED}, "test"))
    after = load_captioner("miniworld:captioner")
    with torch.no_grad():
        weight = after.model.lm_head.weight
        weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        weight[list(after.eos_ids)] = 0  # no EOS, so that a request lasts as long as a test needs
    publish_captioner(after.model, after.processor, run.stage(1, "model").uri)
    run.finish(1, "train", Manifest(fingerprint="made for this test", rows_in=1, rows_out=1))
    return FinishedRun(run, captioner, after)
