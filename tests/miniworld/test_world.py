"""Scenes are reproducible, splits are disjoint, and images show what captions state."""

import io
import random
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from jsfree.errors import ConfigError, SourceError
from jsfree.evaluation.miniworld import count_caption
from jsfree.miniworld import world
from jsfree.miniworld.sheet import picture_sheet
from jsfree.miniworld.vocabulary import COLOURS, CONTEXTS, ICONS, NATIVE_WEIGHTS, OBJECTS, POSITIONS


def content(scene):
    return scene.context, tuple(sorted((item.name, item.colour) for item in scene.objects))


def test_a_scene_depends_only_on_its_index_and_is_found_by_its_id():
    late = world.scene("test", 123_456)
    assert late == world.scene("test", 123_456)
    assert late.scene_id == "miniworld-test-123456"
    assert world.scene_from_id(late.scene_id) == late


def test_scenes_do_not_change_between_versions():
    # A change of the scenes would invalidate every published result.
    assert world.true_caption(world.scene("development", 0)) == (
        "This is a beach. There is a yellow fish at the top left. There is a red ball at the top. "
        "There is a green sailboat on the right."
    )


def test_splits_share_no_content():
    contents = {split: {content(world.scene(split, index)) for index in range(2500)} for split in world.SPLITS}
    for split, mine in contents.items():
        assert len(mine) > 1500
        for other, theirs in contents.items():
            assert split == other or not mine & theirs


def test_split_does_not_depend_on_layout():
    pairs = [("cup", "red"), ("bus", "blue"), ("cow", "black")]
    assert world.content_share("farm", pairs) == world.content_share("farm", pairs[::-1])


@pytest.mark.parametrize("bad", ["miniworld-test-", "miniworld-exam-000001", "photo.jpg", "miniworld-test-00x"])
def test_invalid_ids_are_refused(bad):
    with pytest.raises(SourceError, match="miniworld-test-000123"):
        world.scene_from_id(bad)


def test_unknown_splits_and_negative_indices_are_refused():
    with pytest.raises(ConfigError, match="pretrain, unlabelled, development, test"):
        world.scene("train", 0)
    with pytest.raises(ConfigError, match="start at 0"):
        world.scene("test", -1)


def test_scenes_are_well_formed():
    for index in range(500):
        scene = world.scene("unlabelled", index)
        names = [item.name for item in scene.objects]
        assert 2 <= len(names) == len(set(names)) <= 5
        for item in scene.objects:
            left, top, right, bottom = item.box
            assert 0 <= left < right <= world.SIZE
            assert 0 <= top < bottom <= world.SIZE
            assert item.position in world.fair_positions(item.box)


def test_objects_occur_with_their_context():
    scenes = [world.scene("unlabelled", index) for index in range(2000)]
    native = [item.name in CONTEXTS[scene.context] for scene in scenes for item in scene.objects]
    assert 0.7 < np.mean(native) < 0.95


def test_images_differ_between_scenes_and_are_reproducible():
    scenes = [world.scene("test", index) for index in range(40)]
    assert len({world.draw(scene).tobytes() for scene in scenes}) == 40
    assert world.draw(scenes[3]).tobytes() == world.draw(scenes[3]).tobytes()
    decoded = Image.open(io.BytesIO(world.png_bytes(scenes[3])))
    assert (decoded.mode, decoded.size) == ("RGB", (64, 64))
    assert decoded.tobytes() == world.draw(scenes[3]).tobytes()


def test_images_show_each_object_in_its_colour_and_place():
    for index in range(60):
        scene = world.scene("test", index)
        pixels = np.asarray(world.draw(scene)).astype(int)
        for item in scene.objects:
            left, top, right, bottom = item.box
            distance = np.abs(pixels[top:bottom, left:right] - COLOURS[item.colour]).max(-1)
            assert (distance <= 24).sum() > 6, (scene.scene_id, item)


def test_every_object_has_a_distinct_icon():
    masks = {name: world._icon(name, 20).tobytes() for name in OBJECTS}
    assert len(set(masks.values())) == len(OBJECTS) == len(ICONS)
    assert all(len(natives) == len(NATIVE_WEIGHTS) for natives in CONTEXTS.values())


def test_positions_are_described_by_fair_phrases():
    assert world.position_of((0, 0, 16, 16)) == "at the top left"
    assert world.position_of((24, 24, 40, 40)) == "in the middle"
    assert world.position_of((48, 48, 64, 64)) == "at the bottom right"
    assert world.fair_positions((12, 24, 28, 40)) == {"on the left", "in the middle"}
    assert set().union(*(world.fair_positions(item.box) for item in world.scene("test", 0).objects)) <= set(POSITIONS)


def test_true_captions_are_correct_and_noisy_ones_hallucinate():
    rng = random.Random(0)
    invented: Counter[bool] = Counter()
    for index in range(400):
        scene = world.scene("pretrain", index)
        true = count_caption(scene, world.true_caption(scene))
        assert (true.hallucinated, true.attribute_errors) == (0, 0)
        assert true.distinct_correct == len(scene.objects)
        noisy = count_caption(scene, world.noisy_caption(scene, rng))
        assert noisy.duplicates == 0
        invented[noisy.hallucinated > 0] += 1
    assert 0.5 < invented[True] / 400 < 0.95


def test_noisy_captions_depend_only_on_the_random_generator():
    scene = world.scene("pretrain", 7)
    assert world.noisy_caption(scene, random.Random(5)) == world.noisy_caption(scene, random.Random(5))
    assert len({world.noisy_caption(scene, random.Random(seed)) for seed in range(20)}) > 10


def test_picture_sheet_is_an_image(tmp_path):
    picture_sheet("development", 5, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 4 * 4 * world.SIZE
    with pytest.raises(ConfigError, match="at least 1"):
        picture_sheet("development", 0, tmp_path / "none.png")
