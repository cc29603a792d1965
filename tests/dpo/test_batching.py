"""Batches of pairs: log-probabilities equal to one forward a caption, and an order that depends on nothing else."""

import pytest
import torch

from jsfree import config
from jsfree.config import RunConfig, build
from jsfree.dpo.batching import check_context_length, collate, epoch_order, micro_batches, prefetch
from jsfree.dpo.engine import deepspeed_config
from jsfree.dpo.loop import learning_rate, steps_per_epoch
from jsfree.dpo.policy import PairModel
from jsfree.errors import StageError
from jsfree.images.sources import training_samples
from jsfree.stages.captioning import PairGenerator

SMALL = build({"source": {"count": 6}}, where="test")


@pytest.fixture(scope="module")
def pairs():
    generator = PairGenerator(SMALL, "miniworld:captioner", round_number=1)
    rows = generator(training_samples(SMALL, 1)).rows
    return [{**row, "chosen": row["low"], "rejected": row["high"]} for row in rows]


def alone(captioner, pair, role):
    """Log-probability of one caption: one unpadded forward, summed token by token in float64."""
    from jsfree.images.decoding import load_image

    prompt = captioner.prompt_ids(pair["prompt"], captioner.blank)
    tokens = pair[role]["token_ids"]
    image, _ = load_image(pair["image"], SMALL.source)
    with torch.no_grad():
        logits = captioner.model(
            input_ids=torch.tensor([[*prompt, *tokens]]), **captioner.batch([captioner.inputs(image)])
        ).logits[0]
    logps = torch.log_softmax(logits.double(), -1)
    return sum(float(logps[len(prompt) - 1 + i, token]) for i, token in enumerate(tokens))


def test_a_batch_gives_the_same_log_probabilities_as_separate_forwards(captioner, pairs):
    batch = collate(pairs, captioner, SMALL.source)
    with torch.no_grad():
        logps = PairModel(captioner.model)(batch)
    for row, pair in enumerate(pairs):
        for role in ("chosen", "rejected"):
            assert float(logps[role][row]) == pytest.approx(alone(captioner, pair, role), abs=1e-3)
    lengths = {role: [len(pair[role]["token_ids"]) for pair in pairs] for role in ("chosen", "rejected")}
    assert batch.lengths == lengths
    assert len(batch.targets_T) == sum(map(sum, lengths.values()))


@pytest.mark.parametrize("roles", [("target",), ("chosen", "rejected", "target")])
def test_a_batch_has_the_captions_of_the_requested_roles(captioner, pairs, roles):
    composed = [{**pair, "target": {"token_ids": list(pair["rejected"]["token_ids"][:9])}} for pair in pairs]
    with torch.no_grad():
        logps = PairModel(captioner.model)(collate(composed, captioner, SMALL.source, roles=roles))
    assert tuple(logps) == roles
    for row, pair in enumerate(composed):
        assert float(logps["target"][row]) == pytest.approx(alone(captioner, pair, "target"), abs=1e-3)


def test_the_objective_decides_which_captions_are_trained_on():
    def roles(objective, strategy):
        train = {"objective": objective, "sft_weight": 1.0}
        sections = {"generate": {"samples": 1}, "select": {"strategy": strategy}, "train": train}
        return config.build(sections, where="test").trained_captions

    assert roles("dpo", "gap") == roles("dpo", "coverage") == roles("dpo+nll", "gap") == ("chosen", "rejected")
    assert roles("dpo+nll", "coverage") == ("chosen", "rejected", "target")
    assert (roles("nll", "gap"), roles("nll", "coverage")) == (("chosen",), ("target",))


def test_a_pair_longer_than_the_context_is_refused(captioner, pairs):
    prefix = len(captioner.prompt_ids(pairs[0]["prompt"], captioner.blank))
    long = {**pairs[1]["rejected"], "token_ids": [5] * (512 - prefix)}
    check_context_length([pairs[0], {**pairs[1], "rejected": long}], captioner)
    long["token_ids"].append(5)
    with pytest.raises(StageError, match=rf"{pairs[1]['sample_id']}.*more than the 512 of the model"):
        check_context_length([pairs[0], {**pairs[1], "rejected": long}], captioner)


def test_a_caption_without_tokens_is_refused(captioner, pairs):
    empty = {**pairs[1], "rejected": {**pairs[1]["rejected"], "token_ids": []}}
    with pytest.raises(StageError, match=rf"{pairs[1]['sample_id']}: its rejected caption has no tokens"):
        collate([pairs[0], empty], captioner, SMALL.source)


def test_the_end_token_belongs_to_the_completion(captioner, pairs):
    batch = collate(pairs[:1], captioner, SMALL.source)
    assert batch.targets_T[: batch.lengths["chosen"][0]].tolist() == pairs[0]["chosen"]["token_ids"]
    assert pairs[0]["chosen"]["finish"] == "stop"
    assert pairs[0]["chosen"]["token_ids"][-1] in captioner.eos_ids


def test_workers_split_every_step_without_overlap():
    order = epoch_order(100, seed=3, epoch=1)
    assert sorted(order) == list(range(100))
    assert order == epoch_order(100, seed=3, epoch=1)
    assert order != epoch_order(100, seed=3, epoch=2)
    step = order[64:96]
    lengths = [17 * index % 101 for index in range(100)]
    shares = [micro_batches(lengths, step, micro=4, rank=rank, world=4) for rank in range(4)]
    assert sorted(index for share in shares for micro in share for index in micro) == sorted(step)
    assert all(len(micro) == 4 for share in shares for micro in share)
    together = [[lengths[index] for share in shares for index in share[turn]] for turn in range(2)]
    assert min(together[0]) >= max(together[1]), "pairs of like length go together, over all workers"


def test_prefetching_keeps_order_and_raises_errors_at_their_item():
    loaded = []

    def load(item: int) -> int:
        loaded.append(item)
        if item == 3:
            raise ValueError("no such image")
        return 10 * item

    batches = prefetch(load, [1, 2, 3])
    assert [next(batches), next(batches)] == [10, 20]
    with pytest.raises(ValueError, match="no such image"):
        next(batches)
    assert loaded == [1, 2, 3]
    assert list(prefetch(load, [])) == []


def test_too_few_pairs_are_refused_with_a_remedy():
    with pytest.raises(StageError, match=r"20 selected pairs do not fill one step of 32.*source.count"):
        steps_per_epoch(20, RunConfig())


def test_the_learning_rate_warms_up_and_falls_to_zero():
    config = build({"train": {"learning_rate": 1.0, "warmup_fraction": 0.1}}, where="test")
    rates = [learning_rate(step, 100, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[10] == pytest.approx(1.0)
    assert rates[-1] < 0.001
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_deepspeed_config_follows_the_settings():
    config = build(
        {"train": {"pairs_per_step": 64, "pairs_per_worker": 4, "zero_stage": 3, "resources": {"replicas": 8}}},
        where="test",
    )
    settings_dict = deepspeed_config(config, world=8)
    assert settings_dict["train_micro_batch_size_per_gpu"] * settings_dict["gradient_accumulation_steps"] * 8 == 64
    assert settings_dict["zero_optimization"]["stage"] == 3
    assert settings_dict["bf16"] == {"enabled": False}
