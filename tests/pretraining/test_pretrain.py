"""The shipped models have the expected quality, and a short pre-training reduces the loss."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from jsfree.errors import ModelError
from jsfree.evaluation.miniworld import count_caption
from jsfree.miniworld import questions, world
from jsfree.models.clip import load_clip
from jsfree.models.families.llava import visual_tokens
from jsfree.models.loading import load_captioner
from jsfree.models.references import WEIGHTS
from jsfree.pretraining import clip as clip_training
from jsfree.pretraining import llava, tokenizers
from jsfree.pretraining.languages import PLAIN
from jsfree.pretraining.pretrain import Budget, pretrain
from jsfree.pretraining.tables import scene_table, sentence_table

TINY = Budget(
    clip_scenes=64,
    captioner_scenes=64,
    clip_steps=6,
    clip_batch=16,
    captioner_steps=6,
    captioner_batch=16,
)


@pytest.fixture(scope="module")
def captioner():
    return load_captioner("miniworld:captioner")


@pytest.fixture(scope="module")
def clip():
    return load_clip("miniworld:clip")


def captions(captioner, scenes):
    """Greedy captions by transformers' own ``generate``."""
    ids = torch.tensor([captioner.prompt_ids(world.PROMPT, captioner.blank)] * len(scenes))
    made = captioner.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        **captioner.batch([captioner.inputs(each) for each in [world.draw(scene) for scene in scenes]]),
        do_sample=False,
        max_new_tokens=80,
    )
    return [captioner.text(row[ids.shape[1] :]) for row in made.tolist()]


def cosines(clip, scene, texts):
    with torch.no_grad():
        image = clip.model.encode_image(clip.transform(world.draw(scene))[None], normalize=True)
        return (clip.model.encode_text(clip.tokenizer(texts), normalize=True) @ image[0]).tolist()


def test_the_seed_has_high_recall_and_hallucinates(captioner):
    scenes = [world.scene("development", index) for index in range(60)]
    counts = [count_caption(scene, text) for scene, text in zip(scenes, captions(captioner, scenes), strict=True)]
    recall = sum(count.distinct_correct for count in counts) / sum(count.truth_objects for count in counts)
    assert recall > 0.7
    assert 0.2 < np.mean([count.hallucinated > 0 for count in counts]) < 0.85


def test_the_seed_answers_questions_better_than_chance_and_not_perfectly(captioner):
    yes, no = (captioner.processor.tokenizer(f" {word}").input_ids[1] for word in (questions.YES, questions.NO))
    verdicts = {True: [], False: []}
    for index in range(60):
        scene = world.scene("development", index)
        present = {item.name for item in scene.objects}
        absent = next(name for name in (*world.CONTEXTS[scene.context], *world.OBJECTS) if name not in present)
        for name, is_present in ((scene.objects[0].name, True), (absent, False)):
            prompt = captioner.prompt_ids(questions.existence_question(name), captioner.blank)
            pixels = captioner.batch([captioner.inputs(world.draw(scene))])["pixel_values"]
            with torch.no_grad():
                logits = captioner.model(input_ids=torch.tensor([prompt]), pixel_values=pixels).logits[0, -1]
            verdicts[is_present].append(bool(logits[yes] > logits[no]) == is_present)
    assert all(np.mean(right) > 0.75 for right in verdicts.values())
    assert not all(verdicts[False])


def test_clip_scores_true_sentences_above_hard_negatives(clip):
    rng, wins = random.Random(0), []
    for index in range(60):
        scene = world.scene("development", index)
        item = scene.objects[0]
        absent = world.draw_object(scene.context, {thing.name for thing in scene.objects}, rng)
        colour = next(name for name in world.COLOURS if name != item.colour)
        true, *others = cosines(
            clip,
            scene,
            [
                world.object_sentence(item.name, item.colour, item.position),
                world.object_sentence(absent, item.colour, item.position),
                world.object_sentence(item.name, colour, item.position),
            ],
        )
        wins.append([true > other for other in others])
    assert (np.mean(wins, axis=0) > 0.85).all()


def test_every_sentence_fits_into_clips_context(clip):
    texts = list(sentence_table().texts)
    lengths = (clip.tokenizer(texts) == clip.tokenizer.tokenizer.eos_token_id).int().argmax(1) + 1
    assert (clip.tokenizer(texts)[:, -1] == clip.tokenizer.tokenizer.pad_token_id).all()
    assert int(lengths.max()) < clip.context_length


def test_clips_end_token_has_the_largest_id():
    tokenizer = tokenizers.clip_tokenizer()
    assert tokenizer.eos_token_id == len(tokenizer) - 1
    ids = tokenizer("There is a RED cup.").input_ids
    assert ids == tokenizer("there is a red cup.").input_ids
    assert len(ids) == 8


def test_shipped_files_have_the_hubs_layout_and_are_small():
    with safe_open(WEIGHTS / "captioner" / "model.safetensors", "pt") as weights:
        names = set(weights.keys())
    assert "vision_tower.vision_model.embeddings.class_embedding" in names
    assert {name.split(".")[0] for name in names} == {"vision_tower", "multi_modal_projector", "language_model"}
    files = [file for name in ("captioner", "clip") for file in (WEIGHTS / name).iterdir()]
    assert sum(file.stat().st_size for file in files) < 20e6
    config = json.loads((WEIGHTS / "captioner" / "config.json").read_text())
    heads = config["text_config"]
    assert heads["hidden_size"] // heads["num_attention_heads"] in (32, 64)


def test_prompt_is_that_of_llava(captioner):
    ids = captioner.prompt_ids(world.PROMPT, captioner.blank)
    assert ids.count(captioner.model.config.image_token_index) == visual_tokens(captioner.model.config)
    text = captioner.processor.tokenizer.decode(ids).replace("<image>" * 16, "<image>")
    assert text == f"<s>USER: <image>\n{world.PROMPT} ASSISTANT:"
    assert captioner.prompt_ids("x", None)[0] == captioner.processor.tokenizer.bos_token_id


def test_captioner_has_clips_vision_tower(captioner, clip):
    llava.copy_vision_tower(clip.model.visual, captioner.model.model.vision_tower)
    ours = captioner.model.model.vision_tower.state_dict()
    theirs = llava.vision_weights(clip.model.visual)
    shipped = load_captioner("miniworld:captioner").model.model.vision_tower.state_dict()
    assert len(ours) == len(theirs)
    assert all(torch.equal(ours[name], shipped[name]) for name in ours)


def test_a_wrongly_copied_vision_tower_is_refused(clip, monkeypatch):
    spoiled = llava.vision_weights(clip.model.visual)
    spoiled["pre_layrnorm.weight"] = spoiled["pre_layrnorm.weight"] * 1.5
    monkeypatch.setattr(llava, "vision_weights", lambda visual: spoiled)
    with pytest.raises(ModelError, match="differs from CLIP's"):
        llava.build_captioner(clip.model)


def test_sentence_truth_matches_the_scenes():
    scenes = [world.scene("development", index) for index in range(20)]
    table, sentences = scene_table(scenes, clip_training.PATCH), sentence_table()
    verdicts, misplaced = clip_training.sentence_truth(table, np.arange(20), sentences, np.arange(len(sentences.texts)))
    assert not (verdicts & misplaced).any()
    for scene, row in zip(scenes, verdicts, strict=True):
        said = {text for text, true in zip(sentences.texts, row, strict=True) if true}
        wanted = {world.context_sentence(scene.context)} | {
            world.object_sentence(item.name, item.colour, position)
            for item in scene.objects
            for position in world.fair_positions(item.box)
        }
        assert said == wanted


def test_sampler_draws_true_sentences_and_hard_negatives():
    table = scene_table([world.scene("development", index) for index in range(64)], clip_training.PATCH)
    sentences, rows = sentence_table(), np.arange(64)
    sampler = clip_training.SentenceSampler(table, sentences, np.random.default_rng(0))
    verdicts, misplaced = clip_training.sentence_truth(table, rows, sentences, sampler.draw(rows))
    assert not misplaced[rows, 64 + rows].any()
    assert verdicts[rows, rows].all()
    assert not verdicts[rows, 64 + rows].any()


def test_short_pretraining_reduces_the_loss_and_is_reproducible(tmp_path: Path):
    losses: dict[str, list[float]] = {"clip": [], "captioner": []}
    pretrain(tmp_path / "a", seed=1, progress=lambda part, *rest: losses[part].append(rest[-1]), budget=TINY)
    for part in losses.values():
        assert len(part) == 6
        assert part[-1] < part[0] - 0.2
    pretrain(tmp_path / "b", seed=1, budget=TINY)
    for file in ("clip/open_clip_model.safetensors", "captioner/model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert load_clip(str(tmp_path / "a" / "clip")).context_length == PLAIN.clip_context
    assert visual_tokens(load_captioner(str(tmp_path / "a" / "captioner")).model.config) == llava.PATCHES
