"""Features of images, computed by several threads with one model."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

from jsfree.miniworld import world
from jsfree.models.families.base import join_images
from jsfree.models.loading import load_captioner

SCENES = [world.scene("development", index) for index in range(2)]


@pytest.mark.parametrize("ref", ["miniworld:captioner", "miniworld:qwen-captioner"])
def test_threads_that_share_a_model_get_the_features_of_their_own_images(ref, monkeypatch):
    """A stage may score two shards at once. Each thread computes while the other one is between hook and result."""
    captioner = load_captioner(ref)
    images = [join_images([captioner.inputs(world.draw(scene))]) for scene in SCENES]
    with torch.inference_mode():
        alone = [captioner.family.features(captioner.model, each) for each in images]
    compute, both = captioner.model.model.get_image_features, Barrier(2, timeout=60)

    def computed_together(**tensors):
        both.wait()
        found = compute(**tensors)
        both.wait()
        return found

    monkeypatch.setattr(captioner.model.model, "get_image_features", computed_together)

    def features(tensors):
        with torch.inference_mode():
            return captioner.family.features(captioner.model, tensors)

    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(features, images))
    for own, expected in zip(together, alone, strict=True):
        assert own.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(own[name], tensor)
