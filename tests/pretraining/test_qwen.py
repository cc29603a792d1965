"""The Qwen3-VL of MiniWorld has the family's form, and a short pre-training reduces the loss of tower and captioner."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoProcessor
from typer.testing import CliRunner

from jsfree import config as configuration
from jsfree.errors import ModelError
from jsfree.evaluation.miniworld import count_caption
from jsfree.images.sources import evaluation_samples
from jsfree.miniworld import world
from jsfree.miniworld.world import scene_from_id
from jsfree.models.families.base import PROJECTOR, TOWER, split_features
from jsfree.models.loading import Captioner, load_captioner
from jsfree.models.references import WEIGHTS
from jsfree.pretraining import qwen
from jsfree.pretraining.captioner import CaptionTask, tower_features, train_captioner
from jsfree.pretraining.pretrain import Budget, pretrain_qwen
from jsfree.pretraining.tables import scene_table
from jsfree.stages.captioning import CaptionWriter
from ray_jobs.cli import app

TINY = Budget(
    captioner_scenes=48, captioner_steps=6, captioner_batch=16, tower_scenes=48, tower_steps=6, tower_batch=16
)
REF = "miniworld:qwen-captioner"
SCENES = [world.scene("development", index) for index in range(4)]


@pytest.fixture
def captioner():
    torch.manual_seed(0)
    processor = qwen.build_processor()
    return Captioner(qwen.build_captioner(processor).eval(), processor)


def test_the_model_is_small_and_an_image_is_16_tokens_on_three_axes(captioner):
    assert 1.5e6 < sum(parameter.numel() for parameter in captioner.model.parameters()) < 2.5e6
    prompt = captioner.prompt(world.PROMPT, captioner.inputs(world.draw(SCENES[0])))
    assert prompt.ids.count(captioner.model.config.image_token_id) == 16
    assert len(prompt) - prompt.next_position == 16 - 4
    text = captioner.processor.tokenizer.decode(prompt.ids).replace("<|image_pad|>" * 16, "<|image_pad|>")
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    assert text == f"<|im_start|>user\n{image}{world.PROMPT}<|im_end|>\n<|im_start|>assistant\n"


def test_images_keep_their_resolution(captioner):
    assert captioner.inputs(world.draw(SCENES[0], 2)).tensors["image_grid_thw"].tolist() == [[1, 16, 16]]


def test_every_word_of_a_caption_is_one_token_and_captions_survive_tokenizing(captioner):
    tokenizer = captioner.processor.tokenizer
    for scene in SCENES:
        caption = world.true_caption(scene)
        ids = tokenizer(caption, add_special_tokens=False).input_ids
        assert captioner.text(ids) == caption
        assert len(ids) == len(caption.replace(".", " .").split())


def test_targets_are_in_the_order_of_the_processors_patches(captioner):
    pixels = np.zeros((1, 3, 64, 64), np.uint8)
    numbers = np.arange(64).reshape(1, 1, 8, 8)
    pixels[0] = np.kron(numbers[0, 0], np.ones((8, 8))).astype(np.uint8)
    images = captioner.processor.image_processor(images=[torch.from_numpy(pixels[0])], return_tensors="pt")
    seen = (images["pixel_values"].mean(1) * 127.5 + 127.5).round().long()
    assert seen.tolist() == qwen.patch_targets(numbers)[0, 0].tolist()


def test_the_loss_of_a_caption_is_that_of_the_models_own_forward(captioner):
    reply = world.true_caption(SCENES[0])
    inputs = [captioner.inputs(world.draw(scene)) for scene in SCENES]
    with torch.no_grad():
        features = captioner.family.features(captioner.model, captioner.batch(inputs))
    task = CaptionTask(captioner, SCENES, split_features(features, inputs), 0, reply_start="")
    image = inputs[0]
    prompt = captioner.prompt_ids(world.PROMPT, image)
    ids = [*prompt, *captioner.processor.tokenizer(reply).input_ids, captioner.processor.tokenizer.eos_token_id]
    with torch.no_grad():
        logits = captioner.model(input_ids=torch.tensor([ids]), **captioner.forward_arguments(ids, [image])).logits[0]
        # The second row is shorter, so it is padded.
        ours = task._reply_losses([0, 1], [(world.PROMPT, reply), (world.PROMPT, "Yes.")])
    logps = logits[:-1].log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[len(prompt) - 1 :, 0]
    torch.testing.assert_close(ours[: len(logps)], -logps, atol=1e-4, rtol=0)


def test_captioning_trains_mergers_and_language_model_but_not_the_tower(captioner):
    before = {name: tensor.clone() for name, tensor in captioner.model.state_dict().items()}
    task = CaptionTask(captioner, SCENES, tower_features(captioner, SCENES), 0, reply_start="")
    train_captioner(task, steps=2, batch=4)
    changed = {name for name, tensor in captioner.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert not [name for name in changed if captioner.family.part_of(name) == TOWER]
    assert len([name for name in changed if captioner.family.part_of(name) == PROJECTOR]) >= 3 * 4


def test_a_table_of_other_patches_is_refused(captioner):
    with pytest.raises(ModelError, match="processor's size"):
        qwen.train_tower(captioner, scene_table(SCENES, 16), steps=1, batch=2)


@pytest.mark.slow
def test_short_pretraining_reduces_the_loss_is_reproducible_and_loads_by_automatic_classes(tmp_path: Path):
    losses: dict[str, list[float]] = {"tower": [], "captioner": []}
    pretrain_qwen(tmp_path / "a", seed=1, progress=lambda part, *rest: losses[part].append(rest[-1]), budget=TINY)
    for part in losses.values():
        assert len(part) == 6
        assert part[-1] < part[0] - 0.2
    pretrain_qwen(tmp_path / "b", seed=1, budget=TINY)
    first, second = (tmp_path / name / "qwen-captioner" for name in "ab")
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    assert sum(file.stat().st_size for file in first.iterdir()) < 10e6
    ours = load_captioner(str(first))
    model = AutoModelForImageTextToText.from_pretrained(first, dtype=torch.float32).eval()
    theirs = AutoProcessor.from_pretrained(first).apply_chat_template(
        [
            {
                "role": "user",
                "content": [{"type": "image", "image": world.draw(SCENES[0])}, {"type": "text", "text": "x"}],
            }
        ],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    image = ours.inputs(world.draw(SCENES[0]))
    ids = ours.prompt_ids("x", image)
    assert theirs["input_ids"][0].tolist() == ids
    with torch.no_grad():
        logits = ours.model(input_ids=torch.tensor([ids]), **ours.forward_arguments(ids, [image])).logits
        torch.testing.assert_close(model(**theirs).logits, logits)


def test_shipped_weights_are_small_stored_in_half_precision_and_computed_in_float32():
    assert sum(file.stat().st_size for file in (WEIGHTS / "qwen-captioner").iterdir()) < 10e6
    with safe_open(WEIGHTS / "qwen-captioner" / "model.safetensors", "pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.float16}  # noqa: SIM118
    assert load_captioner(REF).model.dtype == torch.float32


def test_the_seed_sees_most_objects_and_hallucinates_when_sampled():
    source = ["evaluate.source.split=development", "evaluate.source.first=0", "evaluate.source.count=40"]
    config = configuration.load(Path("configs/miniworld-qwen.yaml"), source)
    samples = list(evaluation_samples(config))
    counts = {
        mode: [
            count_caption(scene_from_id(row["image"]["id"]), row["text"])
            for row in CaptionWriter(config, REF, "m0", mode)(samples).rows
        ]
        for mode in ("greedy", "sampled")
    }
    recall = sum(c.distinct_correct for c in counts["greedy"]) / sum(c.truth_objects for c in counts["greedy"])
    assert recall > 0.8
    assert 0.4 < np.mean([count.hallucinated > 0 for count in counts["sampled"]]) < 0.9


def test_the_command_refuses_another_family_for_prose(tmp_path: Path):
    result = CliRunner().invoke(
        app, ["miniworld", "pretrain", "--family", "qwen3_vl", "--world", "prose", "--out", str(tmp_path)]
    )
    assert result.exit_code == 2
    assert not list(tmp_path.iterdir())
