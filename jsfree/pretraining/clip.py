"""Trains MiniWorld's CLIP: a real ``open_clip.CLIP`` that fits into some minutes of two CPU cores.

Two losses. (1) SigLIP's sigmoid loss of image against sentence, with the truth of every pair in the batch
known and with hard negatives (a co-occurring object that is absent, another colour, another place). (2) A
dense loss on the layer that LLaVA reads: which object each patch shows, in which colour and at which place
of the picture. A large CLIP gets the second from 400 million pictures, a tiny one cannot get it from forty
thousand; its heads are thrown away.

Shapes: B images, T sentences, G patches, D width, O objects, P positions, K questions a patch is asked.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from jsfree.miniworld.vocabulary import COLOURS, CONTEXTS, NATIVE_PROBABILITY, NATIVE_WEIGHTS, OBJECTS, POSITIONS
from jsfree.miniworld.world import SIZE
from jsfree.pretraining.optimisation import Optimiser, Progress, batches
from jsfree.pretraining.tables import SceneTable, SentenceTable, sentence_table
from jsfree.pretraining.tokenizers import CLIP_CONTEXT, clip_tokenizer

PATCH = 16
WIDTH = 160
TEXT_WIDTH = 128
PIXEL_MEAN = PIXEL_STD = (0.5, 0.5, 0.5)
# Read by LLaVA (``vision_feature_layer=-2``): the output of the last layer but one.
READ_LAYER = -2
MATRIX_RATE, OTHER_RATE = 0.02, 2e-3
ABSENT_SHARE = 0.65

IntArray = NDArray[np.int64]


def clip_config(vocab_size: int) -> dict[str, Any]:
    """The ``model_cfg`` of open_clip_config.json."""
    return {
        "embed_dim": 192,
        "init_logit_bias": -8.0,
        "vision_cfg": {
            "image_size": SIZE,
            "layers": 4,
            "width": WIDTH,
            "head_width": 32,
            "patch_size": PATCH,
        },
        "text_cfg": {
            "context_length": CLIP_CONTEXT,
            "vocab_size": vocab_size,
            "width": TEXT_WIDTH,
            "heads": 4,
            "layers": 1,
            "hf_tokenizer_name": "in-this-folder",
        },
    }


def build_clip() -> Any:
    """A freshly initialised CLIP."""
    from open_clip import CLIP

    return CLIP(**clip_config(len(clip_tokenizer())))


def save_clip(model: Any, directory: Path) -> None:
    """Write what ``open_clip.create_model_from_pretrained("local-dir:...")`` and ``get_tokenizer`` read."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = clip_tokenizer()
    config = {
        "model_cfg": clip_config(len(tokenizer)),
        "preprocess_cfg": {"mean": PIXEL_MEAN, "std": PIXEL_STD},
    }
    (directory / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, directory / "open_clip_model.safetensors", {"format": "pt"})
    tokenizer.save_pretrained(directory)


def pixel_values(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """Pictures (B, 3, 64, 64) as both towers' preprocessing gives them."""
    return torch.from_numpy(pixels).float().div_(127.5).sub_(1.0)


class DenseHeads(nn.Module):
    """What each patch shows, read from the hidden states that LLaVA will read; used in training only."""

    def __init__(self, vision_tower: Any) -> None:
        super().__init__()
        sizes = (len(OBJECTS), len(COLOURS), len(POSITIONS))
        self.heads = nn.ModuleList(nn.Linear(WIDTH, 1 + size) for size in sizes)
        self._hidden_BGD: torch.Tensor | None = None
        vision_tower.transformer.resblocks[READ_LAYER].register_forward_hook(self._keep)

    def loss(self, shown_BKG: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of the last forward pass, background patches weighted down; K is what is asked."""
        if self._hidden_BGD is None:
            raise RuntimeError("the vision tower has not run yet")
        hidden_BGD = self._hidden_BGD[:, 1:]
        weight_BG = torch.where(shown_BKG[:, 0] > 0, 1.0, 0.15)
        losses_BG = torch.zeros_like(weight_BG)
        for head, shown_BG in zip(self.heads, shown_BKG.unbind(1), strict=True):
            logits_BVG = head(hidden_BGD).transpose(1, 2)
            losses_BG = losses_BG + F.cross_entropy(logits_BVG, shown_BG, reduction="none")
        return (losses_BG * weight_BG).sum() / weight_BG.sum()

    def _keep(self, _module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        self._hidden_BGD = output


def truth(
    scenes: SceneTable, rows: IntArray, sentences: SentenceTable, chosen: IntArray
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether each chosen sentence is true of each chosen scene, and whether it is but for its place, (B, T)."""
    contexts, names = sentences.contexts[chosen], sentences.objects[chosen]
    colours, positions = sentences.colours[chosen], sentences.positions[chosen]
    right_context = scenes.contexts[rows][:, None] == contexts
    right_colour = scenes.colours[rows][:, names] == colours
    right_place = scenes.fair[rows][:, names, positions]
    verdict = np.where(contexts >= 0, right_context, right_colour & right_place)
    return verdict, (contexts < 0) & right_colour & ~right_place


class SentenceSampler:
    """Draws, for each scene of a batch, a true sentence and one that is nearly true."""

    def __init__(self, scenes: SceneTable, sentences: SentenceTable, rng: np.random.Generator) -> None:
        self.scenes, self.sentences, self.rng = scenes, sentences, rng
        natives = np.full((len(CONTEXTS), len(OBJECTS)), (1 - NATIVE_PROBABILITY) / len(OBJECTS))
        for row in range(len(CONTEXTS)):
            start = row * len(NATIVE_WEIGHTS)
            natives[row, start : start + len(NATIVE_WEIGHTS)] += NATIVE_PROBABILITY * np.array(NATIVE_WEIGHTS)
        self.log_natives = np.log(natives)

    def draw(self, rows: IntArray) -> IntArray:
        """Row numbers of sentences, (2B + 8,): true ones, nearly true ones, all context sentences."""
        colours_BO = self.scenes.colours[rows]
        names = self._sample(np.where(colours_BO >= 0, 0.0, -np.inf))
        colours = colours_BO[np.arange(len(rows)), names]
        fair = self.scenes.fair[rows, names]
        places = self._sample(np.where(fair, 0.0, -np.inf))
        true = self.sentences.index(names, colours, places)
        nearly = self._spoil(rows, names, colours, places)
        return np.concatenate([true, nearly, np.arange(len(CONTEXTS))])

    def _spoil(self, rows: IntArray, names: IntArray, colours: IntArray, places: IntArray) -> IntArray:
        """Another object, mostly with the same colour and place, or another colour."""
        size = len(rows)
        log_absent = np.where(self.scenes.colours[rows] >= 0, -np.inf, self.log_natives[self.scenes.contexts[rows]])
        absent = self.rng.random(size) < ABSENT_SHARE
        # A seed's inventions have a colour and a place of their own.
        apart = absent & (self.rng.random(size) < 0.35)
        other_colours = (colours + self.rng.integers(1, len(COLOURS), size)) % len(COLOURS)
        return self.sentences.index(
            np.where(absent, self._sample(log_absent), names),
            np.where(apart | ~absent, other_colours, colours),
            np.where(apart, self.rng.integers(0, len(POSITIONS), size), places),
        )

    def _sample(self, logits: NDArray[np.float64]) -> IntArray:
        drawn: IntArray = np.argmax(logits + self.rng.gumbel(size=logits.shape), axis=-1)
        return drawn


def sigmoid_loss(logits_BT: torch.Tensor, truth_BT: torch.Tensor, hard_BT: torch.Tensor) -> torch.Tensor:
    """SigLIP's loss with any number of true pairs an image.

    True pairs and hard ones weigh as much as all the others of an image together. Pairs that are neither
    true nor false (NaN in ``truth_BT``) do not count.
    """
    known_BT = ~truth_BT.isnan()
    true_BT, losses = truth_BT == 1, F.softplus(torch.where(truth_BT == 1, -logits_BT, logits_BT))
    easy = known_BT & ~true_BT & ~hard_BT
    parts = (losses[true_BT].mean(), losses[hard_BT & ~true_BT].mean(), losses[easy].sum() / len(logits_BT))
    return torch.stack(parts).sum()


def train_clip(scenes: SceneTable, steps: int, batch: int, seed: int = 0, progress: Progress | None = None) -> Any:
    """Train a CLIP on ``scenes``; ``progress(part, step, steps, loss)`` is called after each step."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model, sentences = build_clip(), sentence_table()
    heads = DenseHeads(model.visual)
    named = [*model.named_parameters(), *heads.named_parameters(prefix="heads")]
    optimiser = Optimiser(named, steps, MATRIX_RATE, OTHER_RATE)
    token_ids = clip_tokenizer()(list(sentences.texts), padding="max_length", return_tensors="pt").input_ids
    sampler = SentenceSampler(scenes, sentences, rng)
    for step, rows in zip(range(steps), batches(len(scenes), batch, rng), strict=False):
        chosen = sampler.draw(rows)
        true, misplaced = truth(scenes, rows, sentences, chosen)
        # A tiny CLIP, as large ones, is poor at places: it learns the rest better if they do not count.
        truth_BT = torch.from_numpy(np.where(misplaced, np.nan, true.astype(np.float32)))
        hard_BT = torch.zeros(len(rows), len(chosen), dtype=torch.bool)
        hard_BT[:, len(rows) :].fill_diagonal_(True)
        image_BD = model.encode_image(pixel_values(scenes.pixels[rows]), normalize=True)
        text_TD = model.encode_text(token_ids[chosen], normalize=True)
        logits_BT = model.logit_scale.exp() * image_BD @ text_TD.T + model.logit_bias
        dense = heads.loss(torch.from_numpy(scenes.patches[rows]).flatten(2))
        loss = sigmoid_loss(logits_BT, truth_BT, hard_BT) + dense
        optimiser.step(loss)
        if progress is not None:
            progress("clip", step + 1, steps, loss.item())
    return model.eval()
