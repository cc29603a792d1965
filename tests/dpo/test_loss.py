"""The DPO loss and its variants against their equations written out."""

import math

import pytest
import torch

from jsfree.config import Train
from jsfree.dpo.loss import Lengths, PairLogps, anchor, dpo, first_loss
from jsfree.errors import ConfigError

POLICY = PairLogps(torch.tensor([-10.0, -20.0], requires_grad=True), torch.tensor([-12.0, -19.0]))
REFERENCE = PairLogps(torch.tensor([-11.0, -20.0]), torch.tensor([-11.5, -20.0]))
LENGTHS = Lengths(torch.tensor([4, 8]), torch.tensor([5, 2]))
MARGINS = [(-10 + 11) - (-12 + 11.5), (-20 + 20) - (-19 + 20)]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


@pytest.mark.parametrize("beta", [0.1, 1.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_and_rewards_are_those_of_the_equations(beta, smoothing):
    terms = dpo(POLICY, REFERENCE, LENGTHS, Train(beta=beta, label_smoothing=smoothing))
    expected = [
        -(1 - smoothing) * math.log(sigmoid(beta * m)) - smoothing * math.log(sigmoid(-beta * m)) for m in MARGINS
    ]
    assert terms.loss.tolist() == pytest.approx(expected, rel=1e-5)
    assert terms.chosen_reward.tolist() == pytest.approx([beta * 1.0, 0.0])
    assert terms.rejected_reward.tolist() == pytest.approx([beta * -0.5, beta * 1.0])
    assert not terms.chosen_reward.requires_grad


def test_ipo_wants_a_margin_a_token_of_one_over_two_beta():
    terms = dpo(POLICY, REFERENCE, LENGTHS, Train(beta=0.5, loss="ipo"))
    margins = [1 / 4 - -0.5 / 5, 0 / 8 - 1 / 2]
    assert terms.loss.tolist() == pytest.approx([(m - 1) ** 2 for m in margins], rel=1e-5)


@pytest.mark.parametrize("settings", [{}, {"label_smoothing": 0.3}, {"loss": "ipo", "beta": 0.2}])
def test_the_first_loss_is_that_of_equal_models(settings):
    settings = Train(**settings)
    assert dpo(REFERENCE, REFERENCE, LENGTHS, settings).loss.tolist() == pytest.approx([first_loss(settings)] * 2)


def test_the_papers_first_loss_is_ln_2():
    assert first_loss(Train()) == math.log(2)


def test_the_anchor_is_the_mean_over_tokens():
    assert anchor(POLICY, LENGTHS).tolist() == [2.5, 2.5]


def test_the_gradient_raises_the_chosen_caption():
    chosen = torch.tensor([-10.0], requires_grad=True)
    rejected = torch.tensor([-10.0], requires_grad=True)
    equal = PairLogps(chosen.detach(), rejected.detach())
    lengths = Lengths(torch.tensor([3]), torch.tensor([3]))
    dpo(PairLogps(chosen, rejected), equal, lengths, Train(beta=0.1)).loss.sum().backward()
    assert chosen.grad.item() == pytest.approx(-0.05)
    assert rejected.grad.item() == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"loss": "ipo", "label_smoothing": 0.1}, "'label_smoothing' requires 'loss: sigmoid'"),
        ({"validation": {"pairs": 3}, "resources": {"replicas": 2}}, r"'validation.pairs' \(3\) must be a multiple of"),
        ({"attention": "flex"}, "has no gradients on CPUs"),
        ({"validation": {"publish": "best"}}, "require 'validation.pairs'"),
        ({"validation": {"patience": 2}}, "require 'validation.pairs'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, told):
    from jsfree.config import build

    with pytest.raises(ConfigError, match=told):
        build({"train": settings}, where="test")
