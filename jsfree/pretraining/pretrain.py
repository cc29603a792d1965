"""Rebuilds the shipped models of MiniWorld: CLIP first, then the captioner m0 on CLIP's vision tower.

    jsfree miniworld pretrain --out weights

The same seed on the same machine and thread count gives the same weights.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from jsfree.miniworld import world
from jsfree.pretraining.optimisation import Progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Effort:
    """How much pre-training; the default is what the shipped weights had."""

    clip_scenes: int = 40_000
    clip_steps: int = 2000
    clip_batch: int = 128
    captioner_scenes: int = 30_000
    captioner_steps: int = 1300
    captioner_batch: int = 64


def pretrain(
    out_dir: str | Path, seed: int = 0, progress: Progress | None = None, effort: Effort | None = None
) -> None:
    """Write ``out_dir/clip`` and ``out_dir/captioner``.

    Args:
        out_dir: existing models in it are replaced.
        seed: of initialisation, order and careless captions.
        progress: called as ``progress(part, step, steps, loss)`` after every step.
        effort: less of it for tests.
    """
    import torch

    out, effort = Path(out_dir), effort or Effort()
    # The caller's own random numbers are none of this function's business.
    with torch.random.fork_rng(devices=[]):
        pretrain_clip(out / "clip", seed, progress, effort)
        pretrain_captioner(out / "captioner", out / "clip", seed, progress, effort)


def pretrain_clip(directory: Path, seed: int, progress: Progress | None, effort: Effort) -> None:
    """Write a CLIP into ``directory``."""
    from jsfree.pretraining import clip as clip_training
    from jsfree.pretraining.tables import scene_table

    scenes = _scenes(effort.clip_scenes)
    # Which words belong to which shape is learned from pictures of one or two objects.
    easier = [scene if index % 3 == 0 else world.simplified(scene) for index, scene in enumerate(scenes)]
    table = scene_table(easier, clip_training.PATCH)
    clip = clip_training.train_clip(table, effort.clip_steps, effort.clip_batch, seed, progress or _log)
    clip_training.save_clip(clip, directory)


def pretrain_captioner(
    directory: Path, clip_directory: Path, seed: int, progress: Progress | None, effort: Effort
) -> None:
    """Write a captioner that sees with the vision tower of the CLIP in ``clip_directory``."""
    import torch

    from jsfree.models.loading import load_clip
    from jsfree.models.saving import publish_captioner
    from jsfree.pretraining import captioner as captioner_training
    from jsfree.pretraining import clip as clip_training
    from jsfree.pretraining.tables import scene_table

    scenes = _scenes(effort.captioner_scenes)
    pixels = scene_table(scenes, clip_training.PATCH).pixels
    torch.manual_seed(seed)
    model = captioner_training.build_captioner(load_clip(str(clip_directory)).model)
    features = captioner_training.vision_features(model, pixels)
    task = captioner_training.CaptionTask(model, scenes, features, seed)
    captioner_training.train_captioner(
        model, task, effort.captioner_steps, effort.captioner_batch, seed, progress or _log
    )
    publish_captioner(model, captioner_training.build_processor(), directory)


def _scenes(count: int) -> list[world.Scene]:
    logger.info("drawing %d scenes", count)
    return [world.scene("pretrain", index) for index in range(count)]


def _log(part: str, step: int, steps: int, loss: float) -> None:
    if step % 100 == 0 or step == steps:
        logger.info("%s: step %d of %d, loss %.3f", part, step, steps, loss)
