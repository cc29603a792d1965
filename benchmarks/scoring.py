"""Speed of scoring captions with CLIP sentence by sentence, against a naive loop and against torchmetrics.

    make bench                (or: python benchmarks/scoring.py [--rounds 5])

CPU time of one thread, all variants in turn in one process: 8 images of 224 x 224 pixels, about 84 sentences, an
open_clip model with random weights. All variants must give the same scores. Text towers of the same width are also
compared by kind: padding can be cut only for a causal one, as OpenAI's, DFN's, MetaCLIP's and EVA02's (context of 77
tokens) and PE-Core's (32); those of MobileCLIP2-S (77) and SigLIP (64) are not causal. The result is written to
``benchmarks/results/scoring_<date>_<hardware>.json`` and printed as the last line.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import command_line, in_turn, publish, ratio
from PIL import Image

from jsfree.config import RunConfig
from jsfree.miniworld import world
from jsfree.models.clip_text import TextEncoder, encode_cut
from jsfree.stages.scoring import ClipScorer

TARGETS = {"naive_per_sentence": 7.0, "torchmetrics_per_caption": 4.0}
IMAGES, SENTENCES, SIDE = 8, (9, 12), 224
MODEL = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": SIDE, "layers": 4, "width": 192, "head_width": 48, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 192, "heads": 4, "layers": 4},
}
TEXT_TOWERS: dict[str, dict[str, Any]] = {
    "causal_77": {},
    "causal_32": {"context_length": 32},
    "not_causal_77": {"no_causal_mask": True},
    "not_causal_64": {"no_causal_mask": True, "context_length": 64, "pool_type": "last"},
}
"""Changes to ``MODEL`` by kind of text tower."""
THINGS = (
    "dog",
    "bench",
    "kite",
    "table",
    "bicycle",
    "window",
    "lamp",
    "boat",
    "cat",
    "tree",
    "chair",
    "bus",
    "horse",
    "cup",
)
PLACES = (
    "on the left",
    "near the middle of the picture",
    "in the background, half hidden behind a wall",
    "at the top",
    "next to a person who is looking the other way",
)


def main() -> None:
    """Measure, write and print."""
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    loads = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as folder:
        scorer = scorer_of(Path(folder))
    images, captions = pictures(), sentences()
    variants = {
        "naive_per_sentence": lambda: naive(scorer, images, captions),
        "torchmetrics_per_caption": lambda: torchmetrics_scores(scorer, images, captions),
        "scorer": lambda: scorer.sentence_scores(images, captions),
    }
    plain = flat(variants["naive_per_sentence"]())
    apart = {name: (flat(run()) - plain).abs().max().item() for name, run in variants.items()}
    if max(apart.values()) > 1e-6:
        raise SystemExit(f"the variants do not give the same scores: {apart}")
    seconds = in_turn(variants, rounds)
    ratios = {name: ratio(seconds[name], seconds["scorer"], target) for name, target in TARGETS.items()}
    by_tower = text_tower_seconds([sentence for caption in captions for sentence in caption], rounds)
    loads.append(os.getloadavg()[0])
    count = sum(map(len, captions))
    slowest = by_tower["causal_77_at_full_length"]
    by_kind = {name: ratio(slowest, by_tower[name], 1.0) for name in TEXT_TOWERS}
    for name, each in (ratios | by_kind).items():
        print(f"{name} {each['median']:.2f} ({each['min']:.2f}-{each['max']:.2f})")
    publish(
        "scoring",
        ratios,
        {
            "sentences": count,
            "sentences_per_cpu_second": {name: count / statistics.median(each) for name, each in seconds.items()},
            "largest_difference_from_naive": apart,
            "texts_per_cpu_second": {name: count / statistics.median(each) for name, each in by_tower.items()},
            "texts_faster_than_at_full_length": by_kind,
        },
        loads,
    )


def text_tower_seconds(texts: list[str], rounds: int) -> dict[str, list[float]]:
    """CPU seconds to encode texts in batches, by kind of text tower, and by a causal one whose padding is not cut."""
    clips = {}
    for name, changes in TEXT_TOWERS.items():
        settings = {**MODEL, "text_cfg": {**MODEL["text_cfg"], **changes}}
        with tempfile.TemporaryDirectory() as folder:
            clips[name] = scorer_of(Path(folder), settings)._clip
    encoders = {name: TextEncoder(clip) for name, clip in clips.items()}
    if [name for name, encoder in encoders.items() if encoder.is_causal] != ["causal_77", "causal_32"]:
        raise SystemExit("the wrong text towers are cut")
    whole = clips["causal_77"]

    @torch.inference_mode()
    def at_full_length() -> None:
        whole.model.encode_text(whole.tokenizer(texts), normalize=True)

    variants = {name: partial(encoder.encode, texts) for name, encoder in encoders.items()}
    return in_turn({**variants, "causal_77_at_full_length": at_full_length}, rounds)


def scorer_of(folder: Path, model_config: dict[str, Any] = MODEL, device: str = "cpu") -> ClipScorer:
    """A scorer with random weights for a model described as in open_clip."""
    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(0)
    with torch.device(device):
        model = open_clip.CLIP(**model_config, output_dict=False)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    mean = {"mean": [0.5] * 3, "std": [0.5] * 3}
    model_config_file = json.dumps({"model_cfg": model_config, "preprocess_cfg": mean})
    (folder / "open_clip_config.json").write_text(model_config_file, encoding="utf-8")
    return ClipScorer(RunConfig.model_validate({"clip": {"ref": str(folder)}}), device)


def pictures() -> list[Image.Image]:
    return [world.draw(world.scene("development", index)).resize((SIDE, SIDE)) for index in range(IMAGES)]


def sentences(images: int = IMAGES) -> list[list[str]]:
    """Sentences of each image, some of them repeated, as in captions."""
    drawn = random.Random(0)

    def one() -> str:
        return f"There is a {drawn.choice(THINGS)} {drawn.choice(PLACES)}."

    return [["The image shows a scene.", *(one() for _ in range(drawn.randint(*SENTENCES) - 1))] for _ in range(images)]


@torch.inference_mode()
def naive(scorer: ClipScorer, images: list[Image.Image], captions: list[list[str]]) -> list[list[float]]:
    """Encode image and sentence again for every sentence."""
    clip = scorer._clip
    scores = []
    for image, caption in zip(images, captions, strict=True):
        own = []
        for sentence in caption:
            seen = clip.model.encode_image(clip.transform(image)[None], normalize=True)
            said = clip.model.encode_text(clip.tokenizer([sentence]), normalize=True)
            own.append((seen @ said.T).item())
        scores.append(own)
    return scores


class ForTorchmetrics:
    """The same model with the interface that torchmetrics expects; like transformers' CLIP it does not pad texts."""

    def __init__(self, scorer: ClipScorer) -> None:
        self._clip = scorer._clip
        self.config = None

    def to(self, device: torch.device) -> ForTorchmetrics:  # noqa: ARG002 - torchmetrics moves models
        return self

    def get_image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._clip.model.encode_image(pixels)

    def get_text_features(self, ids: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return encode_cut(self._clip.model, ids)

    def __call__(self, *, images: Any = None, text: Any = None, **_: object) -> dict[str, torch.Tensor]:
        """Preprocess images or texts, as transformers' processors do."""
        if images is not None:
            return {"pixel_values": torch.stack(images)}
        ids = self._clip.tokenizer(text)
        used = ids[:, : int((ids != 0).sum(-1).max())]
        return {"input_ids": used, "attention_mask": (used != 0).long()}


@torch.inference_mode()
def torchmetrics_scores(scorer: ClipScorer, images: list[Image.Image], captions: list[list[str]]) -> list[list[float]]:
    """One call per caption, with its sentences and as many copies of the image."""
    from torchmetrics.functional.multimodal.clip_score import _clip_score_update

    model, scores = ForTorchmetrics(scorer), []
    for image, caption in zip(images, captions, strict=True):
        pixels = scorer._clip.transform(image)
        found, _ = _clip_score_update([pixels] * len(caption), caption, model, model)  # type: ignore[arg-type]
        scores.append((found / 100).tolist())
    return scores


def flat(scores: list[list[float]]) -> torch.Tensor:
    return torch.tensor([score for caption in scores for score in caption])


if __name__ == "__main__":
    main()
