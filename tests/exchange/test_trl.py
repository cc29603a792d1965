"""TRL loads the exported sets and trains on them."""

import math

import pytest

from jsfree.exchange import export
from jsfree.models.references import WEIGHTS

pytestmark = [
    pytest.mark.filterwarnings("default"),  # TRL, accelerate and datasets emit warnings
    pytest.mark.usefixtures("own_cache"),
]


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("kind", ["embedded", "verified"])
def test_the_trainer_runs_two_steps_on_an_exported_set(request, kind, tmp_path):
    import torch
    from datasets import load_dataset
    from transformers import LlavaForConditionalGeneration, LlavaProcessor
    from trl import DPOConfig, DPOTrainer

    run = request.getfixturevalue(kind)
    export(run, "trl", str(tmp_path / "out"))
    data = load_dataset(str(tmp_path / "out"), split="train")
    assert len(data) == run.stage(1, "selected").count_rows()
    assert data[0]["images"][0].size == (64, 64)
    model, reference = (
        LlavaForConditionalGeneration.from_pretrained(WEIGHTS / "captioner", dtype=torch.float32) for _ in range(2)
    )
    before = model.model.language_model.layers[0].mlp.up_proj.weight.clone()
    arguments = DPOConfig(
        output_dir=str(tmp_path / "trainer"),
        per_device_train_batch_size=2,
        max_steps=2,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        max_length=None,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    processor = LlavaProcessor.from_pretrained(WEIGHTS / "captioner")
    trainer = DPOTrainer(
        model=model, ref_model=reference, args=arguments, train_dataset=data, processing_class=processor
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == trainer.state.global_step == 2
    assert losses[0] == pytest.approx(math.log(2), abs=1e-3)
    assert not torch.equal(before, model.model.language_model.layers[0].mlp.up_proj.weight)


def test_a_set_with_image_files_is_loaded_from_its_own_folder(embedded, tmp_path, monkeypatch):
    from datasets import Image, List, load_dataset

    export(embedded, "trl", str(tmp_path / "out"), placement="copy")
    monkeypatch.chdir(tmp_path / "out")
    data = load_dataset(str(tmp_path / "out"), split="train").cast_column("images", List(Image()))
    assert data[0]["images"][0].size == (64, 64)
    assert data[0]["chosen"][0]["role"] == "assistant"
