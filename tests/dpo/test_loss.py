"""The DPO loss against Eq. 1-2 written out."""

import math

import pytest
import torch

from jsfree.dpo.loss import PairLogps, completion_logps, dpo

POLICY = PairLogps(torch.tensor([-10.0, -20.0], requires_grad=True), torch.tensor([-12.0, -19.0]))
REFERENCE = PairLogps(torch.tensor([-11.0, -20.0]), torch.tensor([-11.5, -20.0]))


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_loss_and_rewards_are_those_of_the_equations(beta):
    terms = dpo(POLICY, REFERENCE, beta)
    deltas = [(-10 + 12) - (-11 + 11.5), (-20 + 19) - 0]
    expected = [-math.log(1 / (1 + math.exp(-beta * delta))) for delta in deltas]
    assert terms.loss.tolist() == pytest.approx(expected, rel=1e-5)
    assert terms.chosen_reward.tolist() == pytest.approx([beta * 1.0, 0.0])
    assert terms.rejected_reward.tolist() == pytest.approx([beta * -0.5, beta * 1.0])
    assert not terms.chosen_reward.requires_grad


def test_policy_equal_to_reference_gives_ln_2():
    terms = dpo(REFERENCE, REFERENCE, 0.1)
    assert terms.loss.tolist() == pytest.approx([math.log(2)] * 2)


def test_the_gradient_raises_the_chosen_caption():
    chosen = torch.tensor([-10.0], requires_grad=True)
    rejected = torch.tensor([-10.0], requires_grad=True)
    dpo(PairLogps(chosen, rejected), PairLogps(chosen.detach(), rejected.detach()), 0.1).loss.sum().backward()
    assert chosen.grad.item() == pytest.approx(-0.05)
    assert rejected.grad.item() == pytest.approx(0.05)


def test_only_completion_tokens_count():
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 5, 7), torch.randint(0, 7, (2, 5))
    mask = torch.tensor([[False, True, True, True, False], [False, False, True, False, False]])
    found = completion_logps(logits, targets, mask)
    logps = torch.log_softmax(logits, -1)
    expected = [sum(logps[row, i, targets[row, i]] for i in range(5) if mask[row, i]) for row in range(2)]
    assert found.tolist() == pytest.approx([float(value) for value in expected], rel=1e-5)
