"""Eq. 3 against its definition in float64."""

import pytest
import torch

from jsfree.decoding.mixing import mix, next_token_log_probs, nucleus

torch.manual_seed(0)
CONDITIONAL, UNCONDITIONAL = torch.randn(6, 50) * 3, torch.randn(6, 50) * 3
RATIOS = torch.tensor([0.0, 0.1, 0.3, 0.5, 0.9, 1.0])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_the_mixture_is_of_probabilities(temperature):
    ones = torch.ones(6)
    mixed = next_token_log_probs(CONDITIONAL, UNCONDITIONAL, RATIOS, temperature * ones, ones).exp()
    conditional = torch.softmax(CONDITIONAL.double() / temperature, -1)
    unconditional = torch.softmax(UNCONDITIONAL.double() / temperature, -1)
    h = RATIOS.double()[:, None]
    assert torch.allclose(mixed.double(), (1 - h) * conditional + h * unconditional, atol=1e-6)


def test_the_ends_are_exactly_one_path():
    mixed = mix(torch.log_softmax(CONDITIONAL, -1), torch.log_softmax(UNCONDITIONAL, -1), RATIOS)
    assert torch.equal(mixed[0], torch.log_softmax(CONDITIONAL, -1)[0])
    assert torch.equal(mixed[5], torch.log_softmax(UNCONDITIONAL, -1)[5])


def test_geometric_mixing_is_another_distribution():
    ones = torch.ones(6)
    logit = next_token_log_probs(CONDITIONAL, UNCONDITIONAL, RATIOS, ones, ones, "logit").exp()
    h = RATIOS.double()[:, None]
    expected = torch.softmax((1 - h) * CONDITIONAL.double() + h * UNCONDITIONAL.double(), -1)
    assert torch.allclose(logit.double(), expected, atol=1e-6)
    arithmetic = next_token_log_probs(CONDITIONAL, UNCONDITIONAL, RATIOS, ones, ones).exp()
    assert (logit - arithmetic)[3].abs().sum() > 0.05


def test_the_nucleus_is_cut_on_each_path_before_mixing():
    log_probs = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    kept = nucleus(log_probs, torch.tensor([0.7])).exp()
    assert torch.allclose(kept, torch.tensor([[0.625, 0.375, 0.0, 0.0]]), atol=1e-6)
    assert torch.allclose(nucleus(log_probs, torch.tensor([1e-6])).exp(), torch.tensor([[1.0, 0, 0, 0]]), atol=1e-6)
    assert nucleus(log_probs, torch.tensor([1.0])) is log_probs
    both = next_token_log_probs(
        log_probs, log_probs.flip(1), torch.tensor([0.5]), torch.ones(1), torch.tensor([0.4])
    ).exp()
    assert torch.allclose(both, torch.tensor([[0.5, 0.0, 0.0, 0.5]]), atol=1e-6)
