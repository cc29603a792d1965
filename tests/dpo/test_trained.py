"""What is trained: the projector and the language model, or its last layers, never the vision tower."""

import pytest

from jsfree.dpo.trained import trained_names
from jsfree.errors import ConfigError
from jsfree.models.families.registry import FAMILIES
from jsfree.sizing import shapes

LLAVA = FAMILIES["llava"]
NAMES = shapes.tensors(shapes.PUBLISHED["llava-hf/llava-1.5-7b-hf"])


def test_default_trains_all_but_the_vision_tower():
    trained = trained_names(NAMES, LLAVA, None)
    assert {name.split(".")[0] for name in NAMES.keys() - trained} == {"vision_tower"}
    assert {name.split(".")[0] for name in trained} == {"language_model", "multi_modal_projector"}


def test_last_layers_and_projector_are_trained():
    trained = trained_names(NAMES, LLAVA, 2)
    layers = {name.split(".")[3] for name in trained if name.startswith("language_model")}
    assert layers == {"30", "31"}
    assert len(trained) == 2 * 9 + 4
    assert all(".layers." in name or name.startswith("multi_modal_projector.") for name in trained)


def test_zero_layers_train_the_projector_only():
    assert {name.split(".")[0] for name in trained_names(NAMES, LLAVA, 0)} == {"multi_modal_projector"}


def test_too_many_layers_are_refused():
    assert len(trained_names(NAMES, LLAVA, 32)) == 32 * 9 + 4
    with pytest.raises(ConfigError, match=r"train.trained_layers is 33, but .* has 32 layers"):
        trained_names(NAMES, LLAVA, 33)
