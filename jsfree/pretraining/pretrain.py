"""Pre-trains the shipped models of MiniWorld: CLIP, then the captioner m0 on CLIP's vision tower.

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
class Budget:
    """Scenes, steps and batch sizes; the defaults are those of the shipped weights."""

    clip_scenes: int = 40_000
    clip_steps: int = 2000
    clip_batch: int = 128
    captioner_scenes: int = 30_000
    captioner_steps: int = 1600
    captioner_batch: int = 64


def pretrain(
    out_dir: str | Path, seed: int = 0, progress: Progress | None = None, budget: Budget | None = None
) -> None:
    """Pre-train both models and write ``out_dir/clip`` and ``out_dir/captioner``.

    Args:
        out_dir: existing models in it are replaced.
        seed: seed of initialisation, order and noisy captions.
        progress: called after every step; None logs every 100th.
        budget: scenes and steps; tests use few.
    """
    import torch

    out, budget = Path(out_dir), budget or Budget()
    # Restores the state of torch's global generator afterwards.
    with torch.random.fork_rng(devices=[]):
        pretrain_clip(out / "clip", seed, progress, budget)
        pretrain_captioner(out / "captioner", out / "clip", seed, progress, budget)


def pretrain_clip(directory: Path, seed: int, progress: Progress | None, budget: Budget) -> None:
    """Pre-train CLIP and write it into ``directory``."""
    from jsfree.pretraining import clip as clip_training
    from jsfree.pretraining.tables import scene_table

    scenes = _scenes(budget.clip_scenes)
    # Two thirds have one or two objects only: from them CLIP learns which word belongs to which shape.
    simpler = [scene if index % 3 == 0 else world.simplify(scene) for index, scene in enumerate(scenes)]
    table = scene_table(simpler, clip_training.PATCH)
    clip = clip_training.train_clip(table, budget.clip_steps, budget.clip_batch, seed, progress or _log)
    clip_training.save_clip(clip, directory)


def pretrain_captioner(
    directory: Path, clip_directory: Path, seed: int, progress: Progress | None, budget: Budget
) -> None:
    """Pre-train the captioner on the vision tower of the CLIP in ``clip_directory`` and write it into ``directory``."""
    import torch

    from jsfree.models.loading import load_clip
    from jsfree.models.saving import publish_captioner
    from jsfree.pretraining import captioner as captioner_training
    from jsfree.pretraining import clip as clip_training
    from jsfree.pretraining.tables import scene_table

    scenes = _scenes(budget.captioner_scenes)
    pixels = scene_table(scenes, clip_training.PATCH).pixels
    torch.manual_seed(seed)
    model = captioner_training.build_captioner(load_clip(str(clip_directory)).model)
    features = captioner_training.vision_features(model, pixels)
    task = captioner_training.CaptionTask(model, scenes, features, seed)
    captioner_training.train_captioner(
        model, task, budget.captioner_steps, budget.captioner_batch, seed, progress or _log
    )
    publish_captioner(model, captioner_training.build_processor(), directory)


def _scenes(count: int) -> list[world.Scene]:
    logger.info("drawing %d scenes", count)
    return [world.scene("pretrain", index) for index in range(count)]


def _log(part: str, step: int, steps: int, loss: float) -> None:
    if step % 100 == 0 or step == steps:
        logger.info("%s: step %d of %d, loss %.3f", part, step, steps, loss)
