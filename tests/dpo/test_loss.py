"""The DPO loss and its variants against their equations written out."""

import math

import pytest
import torch

from jsfree.config import build
from jsfree.dpo.loss import Lengths, PairLogps, initial_loss, mean_nll, preference_loss
from jsfree.errors import ConfigError

POLICY = PairLogps(torch.tensor([-10.0, -20.0], requires_grad=True), torch.tensor([-12.0, -19.0]))
REFERENCE = PairLogps(torch.tensor([-11.0, -20.0]), torch.tensor([-11.5, -20.0]))
LENGTHS = Lengths(torch.tensor([4, 8]), torch.tensor([5, 2]))
MARGINS = [(-10 + 11) - (-12 + 11.5), (-20 + 20) - (-19 + 20)]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


@pytest.mark.parametrize("beta", [0.1, 1.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_and_rewards_match_the_equations(beta, smoothing):
    terms = preference_loss(POLICY, REFERENCE, LENGTHS, beta=beta, label_smoothing=smoothing)
    expected = [
        -(1 - smoothing) * math.log(sigmoid(beta * m)) - smoothing * math.log(sigmoid(-beta * m)) for m in MARGINS
    ]
    assert terms.loss.tolist() == pytest.approx(expected, rel=1e-5)
    assert terms.chosen_reward.tolist() == pytest.approx([beta * 1.0, 0.0])
    assert terms.rejected_reward.tolist() == pytest.approx([beta * -0.5, beta * 1.0])
    assert not terms.chosen_reward.requires_grad


def test_ipo_has_its_minimum_at_a_margin_per_token_of_one_over_two_beta():
    terms = preference_loss(POLICY, REFERENCE, LENGTHS, beta=0.5, kind="ipo")
    margins = [1 / 4 - -0.5 / 5, 0 / 8 - 1 / 2]
    assert terms.loss.tolist() == pytest.approx([(m - 1) ** 2 for m in margins], rel=1e-5)


@pytest.mark.parametrize(("smoothing", "kind"), [(0.0, "sigmoid"), (0.3, "sigmoid"), (0.0, "ipo")])
def test_initial_loss_is_that_of_equal_models(smoothing, kind):
    terms = preference_loss(REFERENCE, REFERENCE, LENGTHS, beta=0.2, label_smoothing=smoothing, kind=kind)
    assert terms.loss.tolist() == pytest.approx([initial_loss(0.2, kind)] * 2)


def test_initial_loss_of_the_paper_is_ln_2():
    assert initial_loss(beta=1.0) == math.log(2)


def test_nll_is_averaged_over_tokens():
    assert mean_nll(POLICY.chosen, LENGTHS.chosen).tolist() == [2.5, 2.5]


def test_gradient_raises_chosen_and_lowers_rejected():
    chosen = torch.tensor([-10.0], requires_grad=True)
    rejected = torch.tensor([-10.0], requires_grad=True)
    equal = PairLogps(chosen.detach(), rejected.detach())
    lengths = Lengths(torch.tensor([3]), torch.tensor([3]))
    preference_loss(PairLogps(chosen, rejected), equal, lengths, beta=0.1).loss.sum().backward()
    assert chosen.grad.item() == pytest.approx(-0.05)
    assert rejected.grad.item() == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "ipo", "label_smoothing": 0.1}, "'label_smoothing' requires 'loss: sigmoid'"),
        ({"validation": {"pairs": 3}, "resources": {"replicas": 2}}, r"'validation.pairs' \(3\) must be a multiple of"),
        ({"attention": "flex"}, "has no gradients on CPUs"),
        ({"validation": {"publish": "best"}}, "require 'validation.pairs'"),
        ({"validation": {"patience": 2}}, "require 'validation.pairs'"),
    ],
)
def test_contradictory_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        build({"train": settings}, where="test")
