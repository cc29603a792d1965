"""Mixings of two paths against their definitions in float64."""

import math

import pytest
import torch

from jsfree.config import Contrast, Decoding
from jsfree.decoding.mixing import (
    MIXINGS,
    BatchSettings,
    M3id,
    Vcd,
    add_diffusion_noise,
    contrastive_mixing,
    path_probs,
)

GENERATOR = torch.Generator().manual_seed(0)
CONDITIONAL, UNCONDITIONAL = (torch.randn(6, 50, generator=GENERATOR) * 3 for _ in range(2))
RATIOS = [0.0, 0.1, 0.3, 0.5, 0.9, 1.0]
H = torch.tensor(RATIOS, dtype=torch.float64)[:, None]
CPU = torch.device("cpu")


def rows(steps: int = 0, **decoding) -> BatchSettings:
    return BatchSettings.of([Decoding(**decoding)] * 6, RATIOS, [steps] * 6, CPU)


def softmax(logits: torch.Tensor) -> torch.Tensor:
    return torch.softmax(logits.double(), -1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_default_mixing_is_a_mixture_of_probabilities(temperature):
    mixed = MIXINGS["probability"].probs(CONDITIONAL, UNCONDITIONAL, rows(temperature=temperature))
    expected = (1 - H) * softmax(CONDITIONAL / temperature) + H * softmax(UNCONDITIONAL / temperature)
    assert torch.allclose(mixed.double(), expected, atol=1e-6)


def test_ratios_0_and_1_give_exactly_one_path():
    mixed = MIXINGS["probability"].probs(CONDITIONAL, UNCONDITIONAL, rows())
    assert torch.equal(mixed[0], path_probs(CONDITIONAL, rows())[0])
    assert torch.equal(mixed[5], path_probs(UNCONDITIONAL, rows())[5])


def test_geometric_mixing_mixes_logits():
    logit = MIXINGS["logit"].probs(CONDITIONAL, UNCONDITIONAL, rows())
    assert torch.allclose(logit.double(), softmax((1 - H) * CONDITIONAL + H * UNCONDITIONAL), atol=1e-6)
    assert (MIXINGS["probability"].probs(CONDITIONAL, UNCONDITIONAL, rows()) - logit)[3].abs().sum() > 0.05


def test_vcd_contrasts_plausible_tokens():
    alpha, beta = 0.7, 0.2
    found = Vcd(alpha, beta, None).probs(CONDITIONAL, UNCONDITIONAL, rows())
    plausible = softmax(CONDITIONAL) >= beta * softmax(CONDITIONAL).amax(-1, keepdim=True)
    contrasted = (1 + alpha) * CONDITIONAL.double() - alpha * UNCONDITIONAL.double()
    assert torch.allclose(found.double(), softmax(contrasted.masked_fill(~plausible, -torch.inf)), atol=1e-6)
    # Without image and cut it is classifier-free guidance of 1 + alpha.
    uncut = Vcd(alpha, 1e-30, None).probs(CONDITIONAL, UNCONDITIONAL, rows())
    guided = UNCONDITIONAL + (1 + alpha) * (CONDITIONAL - UNCONDITIONAL)
    assert torch.allclose(uncut.double(), softmax(guided), atol=1e-6)


@pytest.mark.parametrize("step", [0, 40])
def test_m3id_corrects_unsure_tokens_increasingly(step):
    decay, gate = 0.02, 0.5
    found = M3id(decay, gate).probs(CONDITIONAL, UNCONDITIONAL, rows(step))
    log_c, log_u = torch.log_softmax(CONDITIONAL.double(), -1), torch.log_softmax(UNCONDITIONAL.double(), -1)
    gamma = math.exp(-decay * step)
    unsure = log_c.amax(-1, keepdim=True) < math.log(gate)
    assert 0 < unsure.sum() < 6
    expected = softmax(log_c + unsure * (1 - gamma) / gamma * (log_c - log_u))
    assert torch.allclose(found.double(), expected, atol=1e-6)
    if step == 0:
        assert torch.allclose(found, path_probs(CONDITIONAL, rows()), atol=1e-6)


def test_diffusion_noise_has_the_right_scale_and_is_fixed_for_an_image():
    pixels = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(3))
    once = add_diffusion_noise(pixels, 500)
    assert torch.equal(once, add_diffusion_noise(pixels.clone(), 500))
    kept = (once * pixels).sum() / (pixels * pixels).sum()
    assert kept.item() == pytest.approx(math.sqrt(0.7448), abs=0.02)  # VCD's share at its default step
    assert (once - kept * pixels).var().item() == pytest.approx(1 - 0.7448, abs=0.02)
    assert torch.allclose(add_diffusion_noise(pixels, 0), pixels, atol=0.05)


def test_contrastive_mixings_are_configured():
    assert contrastive_mixing(Contrast(kind="m3id", gate=0.4)) == M3id(0.02, 0.4)
    assert contrastive_mixing(Contrast(kind="vcd", noise_step=None)) == Vcd(1.0, 0.1, None)


def truncated(probs: list[float], **decoding) -> torch.Tensor:
    return path_probs(torch.log(torch.tensor([probs])), BatchSettings.of([Decoding(**decoding)], [0.0], [0], CPU))[0]


def test_top_k_and_top_p_truncate_and_renormalise():
    probs = [0.5, 0.3, 0.15, 0.05]
    assert torch.allclose(truncated(probs, top_p=0.7), torch.tensor([0.625, 0.375, 0.0, 0.0]), atol=1e-6)
    assert torch.allclose(truncated(probs, top_p=1e-6), torch.tensor([1.0, 0, 0, 0]), atol=1e-6)
    assert torch.allclose(truncated(probs, top_k=3), torch.tensor([0.5, 0.3, 0.15, 0]) / 0.95, atol=1e-6)
    both = truncated(probs, top_k=2, top_p=0.7)
    assert torch.allclose(both, torch.tensor([0.625, 0.375, 0.0, 0.0]), atol=1e-6)
    assert torch.allclose(truncated(probs), torch.tensor(probs), atol=1e-6)


def test_top_p_truncates_each_path_before_mixing():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    row = BatchSettings.of([Decoding(top_p=0.4)], [0.5], [0], CPU)
    both = MIXINGS["probability"].probs(logits, logits.flip(1), row)
    assert torch.allclose(both, torch.tensor([[0.5, 0.0, 0.0, 0.5]]), atol=1e-6)


def test_captions_of_a_batch_keep_their_own_settings():
    decodings = [Decoding(temperature=0.5), Decoding(top_k=1), Decoding(temperature=0), Decoding(top_p=0.3)]
    together = path_probs(CONDITIONAL[:4], BatchSettings.of(decodings, [0.0] * 4, [0] * 4, CPU))
    for index, decoding in enumerate(decodings):
        alone = path_probs(CONDITIONAL[index : index + 1], BatchSettings.of([decoding], [0.0], [0], CPU))
        assert torch.allclose(together[index], alone[0], atol=1e-7)
