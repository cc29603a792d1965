"""Two-level Gumbel-max sampling: right distribution, noise determined by the key."""

import math

import numpy as np
import pytest
import torch

from jsfree.decoding.sampling import CHUNK, NO_TOKEN, NoiseStream, noise_key, noise_width, sample_tokens


def drawn(probs: torch.Tensor, count: int) -> torch.Tensor:
    """One token of each of ``count`` streams."""
    streams = [NoiseStream(noise_key(0, 1, str(i), "low"), len(probs)) for i in range(count)]
    noise = torch.from_numpy(np.stack([stream.next_token() for stream in streams]))
    return sample_tokens(probs.expand(count, -1), noise, [False] * count)


@pytest.mark.parametrize("vocabulary", [5, 64, 200])  # less than a block, one, and some that are not full
def test_samples_follow_the_distribution(vocabulary):
    probs = torch.rand(vocabulary, generator=torch.Generator().manual_seed(1)) ** 4
    probs[3] = 0
    probs /= probs.sum()
    count = 40_000
    found, expected = torch.bincount(drawn(probs, count), minlength=vocabulary), probs * count
    often = expected > 10
    chi_squared = ((found - expected)[often] ** 2 / expected[often]).sum().item()
    freedom = int(often.sum())
    assert chi_squared < freedom + 4 * math.sqrt(2 * freedom)
    assert found[~often].sum() <= 10 * (~often).sum()
    assert found[3] == 0


def test_probabilities_need_not_be_normalised():
    probs = torch.rand(130, generator=torch.Generator().manual_seed(2))
    assert torch.equal(drawn(probs, 500), drawn(probs * 0.01, 500))


def test_noise_depends_on_key_and_step_only():
    key = noise_key(0, 1, "s", "low")
    first, second = NoiseStream(key, 1000), NoiseStream(key, 1000)
    ahead = [first.next_token() for _ in range(2 * CHUNK + 3)]
    assert all(np.array_equal(each, second.next_token()) for each in ahead)
    assert len({each.tobytes() for each in ahead}) == len(ahead)
    others = [noise_key(1, 1, "s", "low"), noise_key(0, 2, "s", "low"), noise_key(0, 1, "t", "low")]
    others.append(noise_key(0, 1, "s", "high"))
    assert len({key, *others}) == 5
    assert not any(np.array_equal(NoiseStream(other, 1000).next_token(), ahead[0]) for other in others)


def test_noise_is_standard_gumbel():
    stream = NoiseStream(noise_key(0, 1, "s", "low"), 64 * 936)
    noise = np.concatenate([stream.next_token() for _ in range(200)])
    assert noise.size == 200 * noise_width(64 * 936) == 200_000
    assert noise.mean() == pytest.approx(0.5772, abs=0.015)  # Euler's constant; five sigma of the mean
    assert noise.var() == pytest.approx(np.pi**2 / 6, abs=0.05)


def test_greedy_rows_take_the_most_probable_token_and_tokens_without_mass_are_never_sampled():
    # The first block holds more mass, the second the most probable token.
    probs = torch.cat((torch.full((64,), 0.01), torch.tensor([0.36])))[None].expand(50, -1)
    noise = torch.from_numpy(np.stack([NoiseStream(i, 65).next_token() for i in range(50)]))
    assert (sample_tokens(probs, noise, [True] * 50) == 64).all()
    mixed = sample_tokens(probs, noise, [True, False] * 25)
    assert (mixed[::2] == 64).all()
    assert (mixed[1::2] != 64).any()
    without = probs.index_fill(1, torch.tensor([64, 0]), 0.0)
    assert (sample_tokens(without, noise, [False] * 50) % 64 != 0).all()
    assert (sample_tokens(without, noise, [True] * 50) == 1).all()


@pytest.mark.parametrize("vocabulary", [5, 64, 130])
@pytest.mark.parametrize("greedy", [True, False])
def test_rows_without_mass_or_with_nan_have_no_token_and_do_not_affect_others(vocabulary, greedy):
    probs = torch.rand(4, vocabulary, generator=torch.Generator().manual_seed(3))
    noise = torch.from_numpy(np.stack([NoiseStream(i, vocabulary).next_token() for i in range(4)]))
    expected = sample_tokens(probs, noise, [greedy] * 4)
    broken = probs.clone()
    broken[1], broken[2] = 0.0, math.nan
    found = sample_tokens(broken, noise, [greedy] * 4)
    assert found.tolist() == [expected[0].item(), NO_TOKEN, NO_TOKEN, expected[3].item()]
