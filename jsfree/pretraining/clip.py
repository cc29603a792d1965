"""Pre-training of MiniWorld's CLIP: an ``open_clip.CLIP`` that trains within minutes on two CPU cores.

Two losses are summed. (1) SigLIP's sigmoid loss of images against sentences, with the truth of every pair in the batch
and with hard negatives (a co-occurring object that is absent, another colour, another position). (2) A dense loss on
the layer that LLaVA reads: the object that each patch shows, its colour and its position in the image. A large CLIP
learns such features from 400 million images; a tiny one cannot learn them from forty thousand. The dense heads are
discarded after training.

Shape suffixes: B images, T sentences, G patches, D width, O objects, K attributes (object, colour, position),
V classes of an attribute.
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
from jsfree.pretraining.languages import PLAIN, Language
from jsfree.pretraining.optimisation import Optimiser, Progress, batches
from jsfree.pretraining.tables import SceneTable, SentenceTable, sentence_table
from jsfree.pretraining.tokenizers import clip_tokenizer

PATCH = 16
WIDTH = 160
TEXT_WIDTH = 128
PIXEL_MEAN = PIXEL_STD = (0.5, 0.5, 0.5)
# LLaVA reads the output of the last layer but one (``vision_feature_layer=-2``).
READ_LAYER = -2
MATRIX_RATE, OTHER_RATE = 0.02, 2e-3
ABSENT_SHARE = 0.65
"""Share of the hard negatives that name an absent object; the others name another colour."""

IntArray = NDArray[np.int64]


def clip_config(vocab_size: int, language: Language = PLAIN) -> dict[str, Any]:
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
            "context_length": language.clip_context,
            "vocab_size": vocab_size,
            "width": TEXT_WIDTH,
            "heads": 4,
            "layers": language.clip_text_layers,
            "hf_tokenizer_name": "in-this-folder",
        },
    }


def build_clip(language: Language = PLAIN) -> Any:
    """A newly initialised CLIP."""
    from open_clip import CLIP

    return CLIP(**clip_config(len(clip_tokenizer(language)), language))


def save_clip(model: Any, directory: Path, language: Language = PLAIN, dtype: torch.dtype = torch.float32) -> None:
    """Write a folder for ``open_clip.create_model_from_pretrained("local-dir:...")`` and ``get_tokenizer``."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = clip_tokenizer(language)
    config = {
        "model_cfg": clip_config(len(tokenizer), language),
        "preprocess_cfg": {"mean": PIXEL_MEAN, "std": PIXEL_STD},
    }
    (directory / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    weights = {name: tensor.to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, directory / "open_clip_model.safetensors", {"format": "pt"})
    tokenizer.save_pretrained(directory)


def pixel_values(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """Preprocess images (B, 3, 64, 64) as both vision towers do."""
    return torch.from_numpy(pixels).float().div_(127.5).sub_(1.0)


class DenseHeads(nn.Module):
    """Classifiers of each patch on the hidden states that a captioner reads; used in training only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = (len(OBJECTS), len(COLOURS), len(POSITIONS))
        self.heads = nn.ModuleList(nn.Linear(width, 1 + size) for size in sizes)

    def loss(self, hidden_BGD: torch.Tensor, targets_BKG: torch.Tensor) -> torch.Tensor:
        """Cross-entropy over the patches, with a lower weight for those of the background."""
        weight_BG = torch.where(targets_BKG[:, 0] > 0, 1.0, 0.15)
        losses_BG = torch.zeros_like(weight_BG)
        for head, target_BG in zip(self.heads, targets_BKG.unbind(1), strict=True):
            logits_BVG = head(hidden_BGD).transpose(1, 2)
            losses_BG = losses_BG + F.cross_entropy(logits_BVG, target_BG, reduction="none")
        return (losses_BG * weight_BG).sum() / weight_BG.sum()


def sentence_truth(
    scenes: SceneTable, rows: IntArray, sentences: SentenceTable, chosen: IntArray
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether each sentence is true of each scene, and whether it is true except for its position, (B, T) each."""
    contexts, names = sentences.contexts[chosen], sentences.objects[chosen]
    colours, positions = sentences.colours[chosen], sentences.positions[chosen]
    right_context = scenes.contexts[rows][:, None] == contexts
    right_colour = scenes.colours[rows][:, names] == colours
    right_place = scenes.fair[rows][:, names, positions]
    is_true = np.where(contexts >= 0, right_context, right_colour & right_place)
    return is_true, (contexts < 0) & right_colour & ~right_place


class SentenceSampler:
    """Draws a true sentence and a hard negative for each scene of a batch."""

    def __init__(self, scenes: SceneTable, sentences: SentenceTable, rng: np.random.Generator) -> None:
        self.scenes, self.sentences, self.rng = scenes, sentences, rng
        natives = np.full((len(CONTEXTS), len(OBJECTS)), (1 - NATIVE_PROBABILITY) / len(OBJECTS))
        for row in range(len(CONTEXTS)):
            start = row * len(NATIVE_WEIGHTS)
            natives[row, start : start + len(NATIVE_WEIGHTS)] += NATIVE_PROBABILITY * np.array(NATIVE_WEIGHTS)
        self.log_natives = np.log(natives)

    def draw(self, rows: IntArray) -> IntArray:
        """Row numbers of sentences, (2B + 8,): true ones, hard negatives, all context sentences."""
        colours_BO = self.scenes.colours[rows]
        names = self._sample(np.where(colours_BO >= 0, 0.0, -np.inf))
        colours = colours_BO[np.arange(len(rows)), names]
        fair = self.scenes.fair[rows, names]
        places = self._sample(np.where(fair, 0.0, -np.inf))
        true = self.sentences.index(names, colours, places)
        negative = self._hard_negatives(rows, names, colours, places)
        return np.concatenate([true, negative, np.arange(len(CONTEXTS))])

    def _hard_negatives(self, rows: IntArray, names: IntArray, colours: IntArray, places: IntArray) -> IntArray:
        """Sentences with an absent object, mostly of the same colour and position, or with another colour."""
        size = len(rows)
        log_absent = np.where(self.scenes.colours[rows] >= 0, -np.inf, self.log_natives[self.scenes.contexts[rows]])
        absent = self.rng.random(size) < ABSENT_SHARE
        # As in the captioner's hallucinations, some absent objects have another colour and position too.
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
    """SigLIP's sigmoid loss (arXiv 2303.15343) with any number of true pairs an image.

    The mean over true pairs, the mean over hard negatives and the sum over an image's other pairs have equal weight.
    Pairs that are neither true nor false (NaN in ``truth_BT``) are ignored.
    """
    known_BT = ~truth_BT.isnan()
    true_BT, losses = truth_BT == 1, F.softplus(torch.where(truth_BT == 1, -logits_BT, logits_BT))
    easy = known_BT & ~true_BT & ~hard_BT
    parts = (losses[true_BT].mean(), losses[hard_BT & ~true_BT].mean(), losses[easy].sum() / len(logits_BT))
    return torch.stack(parts).sum()


def train_clip(scenes: SceneTable, steps: int, batch: int, seed: int = 0, progress: Progress | None = None) -> Any:
    """Train a CLIP on ``scenes``."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model, sentences = build_clip(), sentence_table()
    heads, hidden = DenseHeads(WIDTH), list[torch.Tensor]()
    read_layer = model.visual.transformer.resblocks[READ_LAYER]
    handle = read_layer.register_forward_hook(lambda *call: hidden.append(call[2]))
    named = [*model.named_parameters(), *heads.named_parameters(prefix="heads")]
    optimiser = Optimiser(named, steps, MATRIX_RATE, OTHER_RATE)
    token_ids = clip_tokenizer()(list(sentences.texts), padding="max_length", return_tensors="pt").input_ids
    sampler = SentenceSampler(scenes, sentences, rng)
    for step, rows in zip(range(steps), batches(len(scenes), batch, rng), strict=False):
        chosen = sampler.draw(rows)
        true, misplaced = sentence_truth(scenes, rows, sentences, chosen)
        # Like large CLIPs, a tiny one is poor at positions; it learns the rest better if they are ignored.
        truth_BT = torch.from_numpy(np.where(misplaced, np.nan, true.astype(np.float32)))
        hard_BT = torch.zeros(len(rows), len(chosen), dtype=torch.bool)
        hard_BT[:, len(rows) :].fill_diagonal_(True)
        image_BD = model.encode_image(pixel_values(scenes.pixels[rows]), normalize=True)
        text_TD = model.encode_text(token_ids[chosen], normalize=True)
        logits_BT = model.logit_scale.exp() * image_BD @ text_TD.T + model.logit_bias
        dense = heads.loss(hidden.pop()[:, 1:], torch.from_numpy(scenes.patches[rows]).flatten(2))
        loss = sigmoid_loss(logits_BT, truth_BT, hard_BT) + dense
        optimiser.step(loss)
        if progress is not None:
            progress("clip", step + 1, steps, loss.item())
    handle.remove()
    return model.eval()
