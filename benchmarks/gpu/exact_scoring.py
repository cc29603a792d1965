"""Checks that CLIP scores on this device agree with those of the CPU."""

from __future__ import annotations

from gpu.report import Report
from gpu.scale import Scale
from jsfree.config import RunConfig
from jsfree.miniworld import world
from jsfree.stages.scoring import ClipScorer

LIMIT = 1e-4


def measure(scale: Scale, report: Report) -> None:
    """Step ``exact-scoring``."""
    scenes = [world.scene("development", at) for at in range(4 * scale.exact_images)]
    images = [world.draw(scene) for scene in scenes]
    # Half of the sentences belong to another image, so that scores differ.
    said = [world.true_caption(scene).split(". ") for scene in scenes]
    captions = [[*own, *other] for own, other in zip(said, said[1:] + said[:1], strict=True)]
    on_device, on_cpu = (
        ClipScorer(RunConfig(), device).sentence_scores(images, captions) for device in (scale.device, "cpu")
    )
    apart = [
        abs(one - other)
        for ones, others in zip(on_device, on_cpu, strict=True)
        for one, other in zip(ones, others, strict=True)
    ]
    report.figure("sentences", len(apart))
    report.check("largest difference from the CPU's scores", max(apart), LIMIT)
    report.headline(f"{len(apart)} sentences")
