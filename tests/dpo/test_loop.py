"""The training loop of one real worker: reference, checkpoints, publishing and resuming."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from jsfree import schemas
from jsfree.config import build
from jsfree.dpo import loop, reference_logps
from jsfree.dpo.loop import Folders, Hooks, Models, split_held_out, train
from jsfree.dpo.pairs import PairTable
from jsfree.errors import ConfigError, StageError
from jsfree.images.sources import training_samples
from jsfree.models.families.llava import hub_key
from jsfree.models.loading import load_captioner
from jsfree.run.folder import Folder, shard_name
from jsfree.stages.captioning import PairGenerator

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("one_worker")]  # DeepSpeed warns
MODELS = Models("miniworld:captioner", "miniworld:captioner", "m0")


def settings(**changes):
    base = {
        "pairs_per_step": 4,
        "pairs_per_worker": 2,
        "epochs": 2,
        "learning_rate": 1e-3,
        "resources": {"replicas": 1},
    }
    return build({"source": {"count": 16}, "train": {**base, **changes}}, where="test")


@pytest.fixture(scope="module")
def pairs():
    config = settings()
    rows = PairGenerator(config, "miniworld:captioner", round_number=1)(training_samples(config, 1)).rows
    return [{**row, "chosen": row["low"], "rejected": row["high"]} for row in rows]


@dataclass
class Trained:
    """A training and its outputs."""

    path: Path
    steps: list[dict[str, float]] = field(default_factory=list)
    totals: list[int] = field(default_factory=list)

    @property
    def folders(self) -> Folders:
        return Folders(*(Folder(f"{self.path}/{name}") for name in ("reference", "features", "model")))

    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.path / "model" / "model.safetensors")

    def run(self, config, pairs, restore: str | None = None, models: Models = MODELS) -> "Trained":
        def progress(history, total) -> None:
            self.steps = [dict(step) for step in history]
            self.totals.append(total)

        def save(directory: str, step: int) -> None:
            shutil.copytree(directory, self.path / f"step-{step}")

        train(config, pairs, models, self.folders, Hooks(progress, save, restore), "cpu")
        return self


@pytest.fixture(scope="module")
def whole(pairs, tmp_path_factory) -> Trained:
    return Trained(tmp_path_factory.mktemp("whole")).run(settings(checkpoint_every=3), pairs)


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def losses(steps) -> list[float]:
    return [step["loss"] for step in steps]


def test_every_step_has_all_figures(whole):
    assert [step["step"] for step in whole.steps] == list(range(8))
    assert {
        *(
            "loss",
            "accuracy",
            "margin",
            "chosen_reward",
            "rejected_reward",
            "chosen_logp",
            "rejected_logp",
            "grad_norm",
        ),
        *("chosen_length", "rejected_length", "chosen_change", "tokens_per_second", "memory", "learning_rate"),
    } <= whole.steps[0].keys()
    assert all(step["grad_norm"] > 0 and step["memory"] > 1e8 for step in whole.steps)
    assert whole.steps[0]["chosen_change"] == pytest.approx(0, abs=1e-5)
    assert abs(whole.steps[-1]["chosen_change"]) > 1e-3
    assert whole.steps[-1]["loss"] < whole.steps[0]["loss"]


def test_a_resumed_training_gives_the_same_weights(whole, pairs, tmp_path):
    for step in (3, 6):
        path = tmp_path / str(step)
        shutil.copytree(whole.path / "reference", path / "reference")
        resumed = Trained(path).run(settings(checkpoint_every=100), pairs, restore=str(whole.path / f"step-{step}"))
        assert len(resumed.steps) == 8
        assert same(resumed.weights(), whole.weights())


def test_pairs_in_shards_train_the_same_model_as_pairs_in_memory(whole, pairs, tmp_path):
    folder = Folder(str(tmp_path / "selected"))
    for number, start in enumerate(range(0, len(pairs), 5)):
        rows = [selected_row(pair) for pair in pairs[start : start + 5]]
        folder.write_table(shard_name(number), pa.Table.from_pylist(rows, schema=schemas.SELECTED), group_rows=2)
    streamed = Trained(tmp_path).run(settings(), PairTable(folder))
    assert losses(streamed.steps) == losses(whole.steps)
    assert same(streamed.weights(), whole.weights())


def selected_row(pair):
    """A pair with the columns of the selected table that training does not read."""
    captions = {role: {**pair[role], "sentences": [], "score": 0.0} for role in ("low", "high", "chosen", "rejected")}
    return {**pair, **captions, "inverted": False, "gap": 0.0, "rank": 0, "split": 1}


def test_a_checkpoint_of_another_number_of_workers_is_refused(whole, pairs, tmp_path):
    checkpoint = shutil.copytree(whole.path / "step-3", tmp_path / "step-3")
    (checkpoint / "workers.json").write_text("4")
    with pytest.raises(
        StageError,
        match=r"written by 4 workers, but training now has 1; set train\.resources\.replicas: 4, or start over",
    ):
        Trained(tmp_path).run(settings(), pairs, restore=str(checkpoint))


def test_a_partially_published_model_is_replaced(whole, pairs, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model-00001-of-00002.safetensors").write_bytes(b"half")
    Trained(tmp_path).run(settings(epochs=1), pairs)
    assert not (tmp_path / "model" / "model-00001-of-00002.safetensors").exists()


def test_cached_features_train_the_same_model_without_reading_images(whole, pairs, tmp_path, monkeypatch):
    cached = Trained(tmp_path).run(settings(cache_vision_features=True), pairs)
    assert len(list((tmp_path / "features").rglob("*.safetensors"))) == len({pair["sample_id"] for pair in pairs})
    assert losses(cached.steps) == pytest.approx(losses(whole.steps), abs=1e-5)
    monkeypatch.setattr("jsfree.dpo.batching.load_image", lambda *_: pytest.fail("an image was read"))
    shutil.rmtree(tmp_path / "model")
    again = Trained(tmp_path).run(settings(cache_vision_features=True), pairs)
    assert same(again.weights(), cached.weights())


def test_reference_log_probabilities_are_reused(whole, pairs, tmp_path, monkeypatch):
    shutil.copytree(whole.path / "reference", tmp_path / "reference")
    monkeypatch.setattr(reference_logps, "_compute", lambda *_: pytest.fail("computed again"))
    assert same(Trained(tmp_path).run(settings(), pairs).weights(), whole.weights())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model", r"computed with other model; compute them again with --restart train"),
        ("text", r"computed with other pairs;"),
        ("preprocessing", r"computed with other captioner.preprocessing;"),
    ],
)
def test_reference_log_probabilities_of_another_origin_are_refused(whole, pairs, tmp_path, change, message):
    shutil.copytree(whole.path / "reference", tmp_path / "reference")
    config, models = settings(), MODELS
    if change == "model":
        models = Models(MODELS.policy, MODELS.reference, "another")
    elif change == "text":
        pairs = [*pairs[:-1], {**pairs[-1], "rejected": {**pairs[-1]["rejected"], "token_ids": [7, 8, 2]}}]
    else:
        config = build(
            {"source": {"count": 16}, "captioner": {"preprocessing": "pad"}, "train": config.train.model_dump()},
            where="t",
        )
    with pytest.raises(StageError, match=message):
        Trained(tmp_path).run(config, pairs, models=models)


def test_a_wrong_reference_is_found_at_the_first_step(whole, pairs, tmp_path):
    shutil.copytree(whole.path / "reference", tmp_path / "reference")
    folder = Folder(str(tmp_path / "reference"))
    facts, table = folder.table_metadata(shard_name(0)), folder.read_table(shard_name(0), schemas.REFERENCE)
    rows = [{**row, "chosen": row["chosen"] - 5} for row in table.to_pylist()]
    folder.write_table(shard_name(0), table.from_pylist(rows, schema=schemas.REFERENCE), facts)
    with pytest.raises(StageError, match=r"not 0\.69315: policy and reference disagree"):
        Trained(tmp_path).run(settings(), pairs)


def test_held_out_pairs_are_evaluated_but_not_trained_on(pairs, tmp_path):
    config = settings(validation={"pairs": 4, "every": 2})
    trained, held_out = split_held_out(pairs, config)
    assert len(held_out) == 4
    assert not {pair["sample_id"] for pair in trained} & {pair["sample_id"] for pair in held_out}
    done = Trained(tmp_path).run(config, pairs)
    assert [step["step"] for step in done.steps if "validation_loss" in step] == [1, 3, 5]
    assert len(done.steps) == 2 * (12 // 4)


def test_early_stopping_publishes_the_best_weights(pairs, tmp_path):
    """A learning rate far too high makes the held-out loss rise."""
    watching = {"pairs": 4, "every": 1, "patience": 2, "publish": "best"}
    config = settings(learning_rate=0.03, epochs=6, checkpoint_every=1, validation=watching)
    stopped = Trained(tmp_path / "stopped").run(config, pairs)
    looked = [step["validation_loss"] for step in stopped.steps]
    best = looked.index(min(looked))
    assert len(looked) == best + 3 < 18
    assert stopped.totals[-1] == len(looked)
    # The weights after the best step are those that its checkpoint holds.
    at_best = Trained(tmp_path / "best")
    published_from(tmp_path / "stopped" / f"step-{best + 1}", config, pairs, at_best)
    assert same(at_best.weights(), stopped.weights())
    assert best > 0
    # A training resumed before the best step publishes the same weights.
    resumed = Trained(tmp_path / "resumed")
    shutil.copytree(tmp_path / "stopped" / "reference", tmp_path / "resumed" / "reference")
    resumed.run(config, pairs, restore=str(tmp_path / "stopped" / f"step-{best}"))
    assert same(resumed.weights(), stopped.weights())
    assert len(resumed.steps) == len(looked)


def published_from(checkpoint: Path, config, pairs, trained: Trained) -> None:
    """Publish the weights of a checkpoint."""
    trainer = loop.Trainer(config, split_held_out(pairs, config)[0], MODELS, "cpu")
    trainer.load_checkpoint(str(checkpoint))
    trainer.publish(trained.folders.model)


def test_a_held_out_loss_that_is_never_finite_fails_the_stage(pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(loop.Trainer, "validate", lambda *_: {"validation_loss": float("nan")})
    with pytest.raises(StageError, match=r"never a finite number: .*lower train\.learning_rate"):
        Trained(tmp_path).run(settings(validation={"pairs": 4, "every": 2}), pairs)


def test_too_few_pairs_without_held_out_ones_are_refused(pairs, tmp_path):
    with pytest.raises(StageError, match=r"16 selected pairs without the 14 that are held out \(train\.validation"):
        Trained(tmp_path).run(settings(validation={"pairs": 14}), pairs)


# From here on ZeRO-3, for which DeepSpeed replaces torch's linear layer in the whole process: the last bits change.


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_adapters_are_trained_merged_and_published(pairs, tmp_path, zero_stage):
    done = Trained(tmp_path).run(settings(lora={"rank": 4, "alpha": 8}, zero_stage=zero_stage), pairs)
    assert done.steps[0]["loss"] == pytest.approx(0.693147, abs=1e-4)
    assert done.steps[-1]["loss"] < done.steps[0]["loss"]
    before = {hub_key(name): weight for name, weight in load_captioner(MODELS.policy).model.state_dict().items()}
    after = done.weights()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys()
    assert {name.split(".")[-2] for name in changed} == set(settings(lora={}).train.lora.targets)
    assert not [name for name in changed if name.startswith("vision_tower.")]
    for name in (name for name in changed if name.endswith("q_proj.weight")):
        assert torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-3) <= 4


def test_the_published_adapter_turns_the_start_model_into_the_published_model(pairs, tmp_path):
    from peft import PeftModel

    done = Trained(tmp_path).run(settings(lora={"rank": 4, "alpha": 8}, epochs=1), pairs)
    adapter = json.loads((tmp_path / "model" / "adapter" / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["lora_alpha"]) == (4, 8)
    base = load_captioner(MODELS.policy).model
    merged = PeftModel.from_pretrained(base, tmp_path / "model" / "adapter").merge_and_unload().state_dict()
    assert same({hub_key(name): weight for name, weight in merged.items()}, done.weights())


@pytest.mark.parametrize("wrong", ["out_proj", "lm_head", "v_porj"])
def test_adapters_for_unknown_layers_are_refused(pairs, tmp_path, wrong):
    with pytest.raises(ConfigError, match=rf"train.lora.targets: .* no linear layer '{wrong}'; choose from .*q_proj"):
        Trained(tmp_path).run(settings(lora={"targets": ["q_proj", wrong]}), pairs)


def test_adapters_and_gradient_checkpointing_work_together_under_zero_3(pairs, tmp_path):
    plain, checkpointed = (
        Trained(tmp_path / str(number)).run(
            settings(lora={"rank": 4}, zero_stage=3, gradient_checkpointing=bool(number), epochs=1), pairs
        )
        for number in range(2)
    )
    assert losses(checkpointed.steps) == pytest.approx(losses(plain.steps), abs=1e-5)


@pytest.mark.parametrize(("zero_stage", "offload"), [(2, "optimizer"), (3, "all")])
def test_an_offloaded_optimizer_trains_the_same_model(whole, pairs, tmp_path, zero_stage, offload):
    done = Trained(tmp_path).run(settings(zero_stage=zero_stage, offload=offload), pairs)
    assert losses(done.steps) == pytest.approx(losses(whole.steps), abs=1e-4)


def test_cached_features_train_the_same_model_under_zero_3(whole, pairs, tmp_path):
    cached = Trained(tmp_path).run(settings(cache_vision_features=True, zero_stage=3), pairs)
    assert losses(cached.steps) == pytest.approx(losses(whole.steps), abs=1e-4)
