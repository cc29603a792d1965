"""The prose world's models: training data against the scenes, and the quality of the shipped weights."""

import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from jsfree.evaluation.miniworld import count_caption, hallucinated_mentions, mentions
from jsfree.miniworld import prose, world
from jsfree.models.clip import load_clip
from jsfree.models.loading import load_captioner
from jsfree.models.references import WEIGHTS
from jsfree.pretraining.clip import PATCH
from jsfree.pretraining.languages import PROSE
from jsfree.pretraining.pretrain import Budget, pretrain_prose
from jsfree.pretraining.prose_clip import SentencePairs, scene_truth
from jsfree.pretraining.tables import scene_table
from jsfree.pretraining.tokenizers import captioner_tokenizer, clip_tokenizer

SCENES = [world.scene("development", index) for index in range(60)]
TINY = Budget(clip_scenes=64, captioner_scenes=64, clip_steps=6, clip_batch=16, captioner_steps=6, captioner_batch=16)


@pytest.fixture(scope="module")
def captioner():
    return load_captioner("miniworld:prose-captioner")


@pytest.fixture(scope="module")
def clip():
    return load_clip("miniworld:prose-clip")


def sentences_of(scene, noisy=False):
    rng = random.Random(scene.index)
    said = world.noisy_mentions(scene, rng) if noisy else scene.objects
    return prose.describe(scene.context, said, rng)


def is_true(scene, text):
    """The truth of a sentence without its positions and relations, from its words."""
    present = {item.name: item.colour for item in scene.objects}
    named = mentions(text)
    if not named:
        context = next((word for word in world.CONTEXTS if f" {word}." in text), None)
        colour = next((word for word in world.COLOURS if f" {word}." in text), None)
        return context in (None, scene.context) and (colour is None or colour in present.values())
    return all(mention.noun in present and mention.colour in (None, present[mention.noun]) for mention in named)


def test_truth_of_every_pair_follows_from_the_words():
    table = scene_table(SCENES, PATCH)
    sentences = [sentence for scene in SCENES for sentence in sentences_of(scene)]
    truth = scene_truth(table, np.arange(len(SCENES)), sentences)
    for scene, row in zip(SCENES, truth, strict=True):
        for sentence, value in zip(sentences, row, strict=True):
            if np.isnan(value):
                assert is_true(scene, sentence.text)
                assert sentence.has_layout or not (sentence.claims or sentence.context), sentence
            else:
                assert value == is_true(scene, sentence.text), (scene, sentence)


def test_pairs_are_a_true_sentence_and_a_false_one():
    true, false = SentencePairs(SCENES, seed=0).draw(np.arange(len(SCENES)))
    assert all(is_true(scene, sentence.text) for scene, sentence in zip(SCENES, true, strict=True))
    wrong = [not is_true(scene, sentence.text) for scene, sentence in zip(SCENES, false, strict=True)]
    assert all(wrong)


def test_every_word_is_one_token():
    rng, captions, clips = random.Random(0), captioner_tokenizer(PROSE), clip_tokenizer(PROSE)
    for index in range(300):
        text = prose.noisy_caption(world.scene("pretrain", index), rng)
        words = re.findall(r"\w+|[.,]", text)
        assert len(captions(f" {text}", add_special_tokens=False).input_ids) == len(words)
        assert len(clips(text, add_special_tokens=False).input_ids) == len(words)


def test_every_sentence_fits_into_clips_context():
    tokenizer = clip_tokenizer(PROSE)
    for index in range(1000):
        for sentence in sentences_of(world.scene("pretrain", index)):
            assert len(tokenizer(sentence.text).input_ids) < PROSE.clip_context, sentence


@pytest.mark.slow
def test_short_pretraining_reduces_the_loss_and_is_reproducible(tmp_path: Path):
    losses: dict[str, list[float]] = {"prose clip": [], "captioner": []}
    pretrain_prose(tmp_path / "a", seed=1, progress=lambda part, *rest: losses[part].append(rest[-1]), budget=TINY)
    for part in losses.values():
        assert part[-1] < part[0] - 0.2
    pretrain_prose(tmp_path / "b", seed=1, budget=TINY)
    for file in ("prose-clip/open_clip_model.safetensors", "prose-captioner/model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_shipped_weights_are_small_stored_in_half_precision_and_computed_in_float32(captioner, clip):
    files = [file for name in ("prose-captioner", "prose-clip") for file in (WEIGHTS / name).iterdir()]
    assert sum(file.stat().st_size for file in files) < 10e6
    with safe_open(WEIGHTS / "prose-captioner" / "model.safetensors", "pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.float16}  # noqa: SIM118
    assert captioner.model.dtype == torch.float32
    assert next(clip.model.parameters()).dtype == torch.float32


def captions(captioner, sample):
    """Captions of ``SCENES`` by transformers' own ``generate``."""
    torch.manual_seed(0)
    ids = torch.tensor([captioner.prompt_ids(world.PROMPT, captioner.blank)] * len(SCENES))
    made = captioner.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        **captioner.batch([captioner.inputs(each) for each in [world.draw(scene) for scene in SCENES]]),
        do_sample=sample,
        top_k=0,
        max_new_tokens=100,
    )
    return [captioner.text(row[ids.shape[1] :]) for row in made.tolist()]


def test_the_seed_sees_most_objects_and_hallucinates_when_sampled(captioner):
    greedy, sampled = (
        [count_caption(scene, text) for scene, text in zip(SCENES, captions(captioner, sample), strict=True)]
        for sample in (False, True)
    )
    recall = sum(count.distinct_correct for count in greedy) / sum(count.truth_objects for count in greedy)
    assert recall > 0.6
    assert 0.5 < np.mean([count.hallucinated > 0 for count in sampled]) < 0.9


def test_the_seed_writes_prose(captioner):
    sentences = [
        f"{sentence}." for text in captions(captioner, sample=True) for sentence in text.split(".") if sentence
    ]
    assert {1, 2, 3} <= {len(mentions(sentence)) for sentence in sentences}
    assert any(sentence.strip().startswith("It ") for sentence in sentences)


def test_clip_ranks_sentences_about_absent_objects_below_others(clip):
    cosines, absent = [], []
    for scene in SCENES:
        texts = [sentence.text for sentence in sentences_of(scene, noisy=True) if mentions(sentence.text)]
        with torch.no_grad():
            image = clip.model.encode_image(clip.transform(world.draw(scene))[None], normalize=True)
            cosines += (clip.model.encode_text(clip.tokenizer(texts), normalize=True) @ image[0]).tolist()
        absent += [bool(hallucinated_mentions(scene, text)) for text in texts]
    values, labels = np.array(cosines), np.array(absent)
    # The probability that a true sentence scores higher than one with an absent object: the area under the ROC curve.
    auc = np.mean(values[~labels][:, None] > values[labels][None])
    assert 0.8 < auc < 0.98
