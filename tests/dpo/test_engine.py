"""DeepSpeed on one real worker, with the fused optimizer kernel of GPUs."""

import pytest
import torch

from jsfree.config import RunConfig, build
from jsfree.dpo import engine as dpo_engine
from jsfree.dpo.batching import collate
from jsfree.dpo.engine import enable_gradient_checkpointing, gather_weights, start_engine
from jsfree.dpo.policy import PairModel
from jsfree.dpo.trained import trained_names
from jsfree.errors import ModelError
from jsfree.images.sources import training_samples
from jsfree.models.families.llava import hub_key
from jsfree.models.families.registry import FAMILIES
from jsfree.models.loading import DTYPES, load_captioner
from jsfree.models.references import WEIGHTS
from jsfree.sizing import footprint

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("one_worker")]  # DeepSpeed warns


@pytest.fixture
def fused(monkeypatch):
    """Use the fused optimizer, which torch also has for CPUs."""
    plain = dpo_engine.adamw
    monkeypatch.setattr(dpo_engine, "adamw", lambda model, config, fused: plain(model, config, fused=True))


def settings(dtype: str = "float32", **train) -> RunConfig:
    train = {"pairs_per_step": 2, "learning_rate": 1e-3, "resources": {"replicas": 1}, **train}
    return build({"source": {"count": 2}, "captioner": {"dtype": dtype}, "train": train}, where="test")


def started(config: RunConfig):
    captioner = load_captioner("miniworld:captioner", dtype=config.captioner.dtype)
    samples = training_samples(config, 1)
    pairs = [{**row, "chosen": {"token_ids": [9, 10, 2]}, "rejected": {"token_ids": [11, 2]}} for row in samples]
    engine = start_engine(captioner, config, 1)
    return engine, collate(pairs, captioner, config.source).to(captioner.device, DTYPES[config.captioner.dtype])


def step(engine, batch) -> float:
    logps = engine(batch)
    loss = (logps["rejected"] - logps["chosen"]).mean()
    engine.backward(loss)
    engine.step()
    return loss.item()


def weights(engine) -> dict[str, torch.Tensor]:
    return {hub_key(name): tensor.clone() for name, tensor in gather_weights(engine).items()}


@pytest.mark.slow
@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize(
    ("zero_stage", "dtype", "trained_layers"),
    [(1, "bfloat16", None), (2, "float32", 1), (2, "bfloat16", 1), (3, "bfloat16", 1)],
)
def test_only_trained_parameters_change_and_checkpoint_size_is_as_predicted(
    tmp_path, zero_stage, dtype, trained_layers
):
    engine, batch = started(settings(dtype, zero_stage=zero_stage, trained_layers=trained_layers))
    assert all(group["fused"] for group in engine.optimizer.optimizer.param_groups)
    before = weights(engine)
    step(engine, batch)
    after = weights(engine)
    trained = trained_names(before, FAMILIES["llava"], trained_layers)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed <= trained
    assert len(changed) > 0.6 * len(trained)
    engine.save_checkpoint(str(tmp_path), tag="state")
    written = sum(file.stat().st_size for file in (tmp_path / "state").iterdir())
    predicted = footprint.checkpoint_bytes(
        footprint.count_parameters(WEIGHTS / "captioner", trained_layers), zero_stage, dtype
    )
    assert written == pytest.approx(predicted, rel=0.02, abs=100_000)  # the files have headers, some tensors padding


@pytest.mark.slow
@pytest.mark.usefixtures("fused")
def test_resuming_from_a_checkpoint_gives_the_same_weights(tmp_path):
    config = settings("bfloat16", trained_layers=1)
    engine, batch = started(config)
    step(engine, batch)
    engine.save_checkpoint(str(tmp_path), tag="state")
    resumed, _ = started(config)
    resumed.load_checkpoint(str(tmp_path), tag="state")
    assert step(resumed, batch) == step(engine, batch)
    expected, found = weights(engine), weights(resumed)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
@pytest.mark.parametrize(("checkpointing", "passes"), [(False, 1), (True, 2)])
def test_gradient_checkpointing_recomputes_activations_and_gives_the_same_loss(checkpointing, passes):
    engine, batch = started(settings(gradient_checkpointing=checkpointing))
    with torch.no_grad():
        expected = PairModel(load_captioner("miniworld:captioner").model)(batch)
    seen = []
    # Before the layer's MLP: the second pass stops as soon as it has what the backward pass needs.
    engine.module.llava.model.language_model.layers[0].mlp.register_forward_pre_hook(lambda *_: seen.append(1))
    loss = step(engine, batch)
    assert len(seen) == passes
    assert loss == pytest.approx(float((expected["rejected"] - expected["chosen"]).mean()), abs=1e-5)


def test_gradient_checkpointing_of_a_model_with_dropout_is_refused():
    model = load_captioner("miniworld:captioner").model
    model.config.text_config.attention_dropout = 0.1
    with pytest.raises(ModelError, match=r"text_config.attention_dropout.* 0\.1.*set it to 0"):
        enable_gradient_checkpointing(model)


@pytest.mark.slow
@pytest.mark.usefixtures("fused")
def test_no_compiler_is_needed(extensions):
    """DeepSpeed and torch put what they build into a folder, which no engine of this module has written to."""
    engine, batch = started(settings())
    step(engine, batch)
    assert list(extensions.rglob("*")) == []
