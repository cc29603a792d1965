"""Pre-trains the shipped models of MiniWorld: CLIP, then the captioner m0 on CLIP's vision tower.

    jsfree miniworld pretrain --out weights
    jsfree miniworld pretrain --world prose --out weights
    jsfree miniworld pretrain --family qwen3_vl --out weights

The models of the prose world share the vision tower of ``miniworld:clip``, since both worlds have the same images. The
captioner of the family Qwen3-VL has a tower of its own, and is scored by ``miniworld:clip``.

The same seed on the same machine and thread count gives the same weights.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jsfree.miniworld import world
from jsfree.pretraining.languages import PLAIN, PROSE, Language
from jsfree.pretraining.optimisation import Progress

if TYPE_CHECKING:
    import torch

    from jsfree.models.loading import Captioner

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Budget:
    """Scenes, steps and batch sizes; the defaults are those of the shipped weights of the plain world."""

    clip_scenes: int = 40_000
    clip_steps: int = 2000
    clip_batch: int = 128
    captioner_scenes: int = 30_000
    captioner_steps: int = 1600
    captioner_batch: int = 64
    tower_scenes: int = 40_000
    tower_steps: int = 2400
    tower_batch: int = 96


PROSE_BUDGET = Budget(clip_scenes=12_000, clip_steps=400, captioner_scenes=24_000, captioner_steps=2400)
"""That of the shipped weights of the prose world."""
QWEN_BUDGET = Budget(captioner_scenes=24_000)
PLAIN_CLIP = "miniworld:clip"


def pretrain(
    out_dir: str | Path, seed: int = 0, progress: Progress | None = None, budget: Budget | None = None
) -> None:
    """Pre-train both models of the plain world and write ``out_dir/clip`` and ``out_dir/captioner``.

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


def pretrain_prose(
    out_dir: str | Path, seed: int = 0, progress: Progress | None = None, budget: Budget | None = None
) -> None:
    """Pre-train both models of the prose world and write ``out_dir/prose-clip`` and ``out_dir/prose-captioner``.

    Args:
        out_dir, seed, progress, budget: as for :func:`pretrain`.
    """
    import torch

    out, budget = Path(out_dir), budget or PROSE_BUDGET
    with torch.random.fork_rng(devices=[]):
        pretrain_prose_clip(out / "prose-clip", seed, progress, budget)
        pretrain_captioner(out / "prose-captioner", PLAIN_CLIP, seed, progress, budget, PROSE)


def pretrain_qwen(
    out_dir: str | Path, seed: int = 0, progress: Progress | None = None, budget: Budget | None = None
) -> None:
    """Pre-train a Qwen3-VL captioner of the plain world, tower first, and write ``out_dir/qwen-captioner``.

    Args:
        out_dir, seed, progress, budget: as for :func:`pretrain`.
    """
    import torch

    from jsfree.models.loading import Captioner
    from jsfree.pretraining import qwen
    from jsfree.pretraining.tables import scene_table

    budget, progress = budget or QWEN_BUDGET, progress or _log
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        processor = qwen.build_processor()
        captioner = Captioner(qwen.build_captioner(processor), processor)
        table = scene_table(_scenes(budget.tower_scenes), qwen.PATCH)
        qwen.train_tower(captioner, table, budget.tower_steps, budget.tower_batch, seed, progress)
        directory = Path(out_dir) / "qwen-captioner"
        _train_and_publish(captioner, directory, seed, progress, budget, PLAIN, "", torch.float16)


def pretrain_clip(directory: Path, seed: int, progress: Progress | None, budget: Budget) -> None:
    """Pre-train CLIP and write it into ``directory``."""
    from jsfree.pretraining import clip as clip_training
    from jsfree.pretraining.tables import scene_table

    scenes = _scenes(budget.clip_scenes)
    table = scene_table(_simpler(scenes), clip_training.PATCH)
    clip = clip_training.train_clip(table, budget.clip_steps, budget.clip_batch, seed, progress or _log)
    clip_training.save_clip(clip, directory)


def pretrain_prose_clip(directory: Path, seed: int, progress: Progress | None, budget: Budget) -> None:
    """Pre-train the prose world's CLIP on the vision tower of the plain one and write it into ``directory``."""
    import torch

    from jsfree.models.clip import load_clip
    from jsfree.pretraining import clip as clip_training
    from jsfree.pretraining.prose_clip import train_prose_clip
    from jsfree.pretraining.tables import scene_table

    scenes = _simpler(_scenes(budget.clip_scenes))
    table = scene_table(scenes, clip_training.PATCH)
    plain = load_clip(PLAIN_CLIP).model
    clip = train_prose_clip(plain, scenes, table, budget.clip_steps, budget.clip_batch, seed, progress or _log)
    clip_training.save_clip(clip, directory, PROSE, torch.float16)


def pretrain_captioner(
    directory: Path,
    clip: str | Path,
    seed: int,
    progress: Progress | None,
    budget: Budget,
    language: Language = PLAIN,
) -> None:
    """Pre-train the captioner on the vision tower of ``clip``, a folder or reference, and write it into ``directory``.

    The weights of the prose world are stored in half precision, to be small; they are loaded in float32.
    """
    import torch

    from jsfree.models.clip import load_clip
    from jsfree.models.loading import Captioner
    from jsfree.pretraining import llava

    torch.manual_seed(seed)
    model = llava.build_captioner(load_clip(str(clip)).model, language)
    captioner = Captioner(model, llava.build_processor(language))
    dtype = torch.float32 if language is PLAIN else torch.float16
    _train_and_publish(captioner, directory, seed, progress or _log, budget, language, " ", dtype)


def _train_and_publish(
    captioner: "Captioner",
    directory: Path,
    seed: int,
    progress: Progress,
    budget: Budget,
    language: Language,
    reply_start: str,
    dtype: "torch.dtype",
) -> None:
    """Train projector and language model of ``captioner``, and write it into ``directory`` in ``dtype``."""
    from jsfree.models.saving import publish_captioner
    from jsfree.pretraining.captioner import CaptionTask, tower_features, train_captioner

    scenes = _scenes(budget.captioner_scenes)
    images = tower_features(captioner, scenes)
    task = CaptionTask(captioner, scenes, images, seed, language=language, reply_start=reply_start)
    train_captioner(task, budget.captioner_steps, budget.captioner_batch, seed, progress)
    weights = {name: tensor.to(dtype) for name, tensor in captioner.model.state_dict().items()}
    publish_captioner(captioner.model, captioner.processor, directory, weights)


def _simpler(scenes: list[world.Scene]) -> list[world.Scene]:
    """Reduce two thirds of the scenes to one or two objects: from them CLIP learns which word names which shape."""
    return [scene if index % 3 == 0 else world.simplify(scene) for index, scene in enumerate(scenes)]


def _scenes(count: int) -> list[world.Scene]:
    logger.info("drawing %d scenes", count)
    return [world.scene("pretrain", index) for index in range(count)]


def _log(part: str, step: int, steps: int, loss: float) -> None:
    if step % 100 == 0 or step == steps:
        logger.info("%s: step %d of %d, loss %.3f", part, step, steps, loss)
