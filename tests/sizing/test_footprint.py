"""Size estimates, against the files of a real model and the figures in the shipped configurations."""

import pytest

from jsfree import config
from jsfree.config import Lora
from jsfree.dpo.lora import add_adapters
from jsfree.dpo.policy import PairModel
from jsfree.models.families.registry import FAMILIES
from jsfree.models.loading import load_captioner
from jsfree.models.references import WEIGHTS
from jsfree.sizing import footprint, shapes
from jsfree.sizing.footprint import Parameters
from tests.support import ROOT

CONFIGS = ROOT / "configs"
GB = 1e9


def published(name: str, trained_layers: int | None = None) -> Parameters:
    return footprint.parameters_of(
        shapes.tensors(shapes.PUBLISHED[f"llava-hf/{name}-hf"]), FAMILIES["llava"], trained_layers
    )


@pytest.mark.parametrize("trained_layers", [None, 0, 2])
def test_parameters_are_counted_from_the_files_without_loading_them(captioner, trained_layers):
    counted = footprint.count_parameters(WEIGHTS / "captioner", trained_layers)
    parameters = dict(captioner.model.named_parameters())
    assert counted.total == sum(parameter.numel() for parameter in parameters.values())
    chosen = ["multi_modal_projector"]
    chosen += {None: ["language_model", "lm_head"], 0: [], 2: ["layers.1.", "layers.2."]}[trained_layers]
    assert counted.trained == sum(
        parameter.numel()
        for name, parameter in parameters.items()
        if "vision_tower" not in name and any(part in name for part in chosen)
    )


def test_the_figures_in_the_smoke_configuration_match_the_estimates():
    smoke = config.load(CONFIGS / "llava-1.5-7b-smoke.yaml")
    whole, some = published("llava-1.5-7b"), published("llava-1.5-7b", smoke.train.trained_layers)
    stage, dtype = smoke.train.zero_stage, smoke.captioner.dtype
    assert footprint.gpu_bytes(whole, stage, 1, dtype) / GB == pytest.approx(149, abs=0.5)
    assert footprint.gpu_bytes(some, stage, 1, dtype) / GB == pytest.approx(30.7, abs=0.05)
    assert footprint.checkpoint_bytes(some, stage, dtype) / GB == pytest.approx(24.1, abs=0.05)
    assert footprint.model_bytes(some, dtype) / GB == pytest.approx(14.1, abs=0.05)
    most = smoke.source.count * 9 // 10 // smoke.train.pairs_per_step * smoke.train.epochs
    assert footprint.max_checkpoints(most, smoke.train.checkpoint_every, smoke.train.keep) == 2


@pytest.mark.parametrize("name", ["llava-1.5-13b", "llava-1.5-13b-paper"])
def test_the_figures_in_the_13b_configurations_match_the_estimates(name):
    train, parameters = config.load(CONFIGS / f"{name}.yaml").train, published("llava-1.5-13b")
    held = {stage: footprint.gpu_bytes(parameters, stage, 8, "bfloat16") / GB for stage in (1, 2, 3)}
    assert held == {1: pytest.approx(82, abs=0.5), 2: pytest.approx(59, abs=0.5), 3: pytest.approx(36, abs=0.5)}
    assert footprint.checkpoint_bytes(parameters, 2, "bfloat16") / GB == pytest.approx(183, abs=0.5)
    assert footprint.checkpoint_bytes(parameters, 3, "bfloat16") / GB == pytest.approx(157, abs=0.5)
    steps = 10_000 // train.pairs_per_step
    assert footprint.max_checkpoints(steps, train.checkpoint_every, train.keep) == 1


@pytest.mark.parametrize(
    ("steps", "every", "keep", "held"),
    [(10, 10, 1, 0), (11, 10, 1, 1), (100, 10, 1, 2), (100, 10, 3, 4), (30, 10, 5, 2)],
)
def test_the_maximum_of_checkpoints_depends_on_steps_interval_and_keep(steps, every, keep, held):
    assert footprint.max_checkpoints(steps, every, keep) == held


def test_the_size_of_image_features_matches_the_stored_features(captioner):
    model = PairModel(captioner.model)
    features = model.vision_features(captioner.batch([captioner.blank]))["features"]
    assert footprint.feature_bytes(WEIGHTS / "captioner", "float32") == features.nbytes


def test_adapter_parameters_match_the_trained_parameters():
    model = load_captioner("miniworld:captioner").model
    frozen = sum(parameter.numel() for parameter in model.parameters())
    add_adapters(model, Lora(rank=4))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    counted = footprint.count_parameters(WEIGHTS / "captioner", None, Lora(rank=4))
    assert counted == Parameters(frozen + trained, trained)


def test_every_gpu_holds_one_full_copy_of_the_weights_despite_offloading():
    parameters = Parameters(1000, 900)
    assert footprint.gpu_bytes(parameters, 3, 8, "bfloat16", "all") == 2000
    assert footprint.gpu_bytes(parameters, 3, 1000, "bfloat16") == 2000
    assert footprint.gpu_bytes(parameters, 2, 8, "bfloat16", "optimizer") == 2000 + 2 * 900 / 8
