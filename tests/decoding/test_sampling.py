"""Counter-based Gumbel-max: known answers, the right distribution, and nothing but the key decides."""

import pytest
import torch

from jsfree.decoding.sampling import draw, gumbel, noise_key, philox

CPU = torch.device("cpu")
ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # test vectors published with Random123 (Salmon et al. 2011)
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES,) * 4, (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_words(counter, key, expected):
    words = philox([torch.tensor([w]) for w in counter], [torch.tensor([w]) for w in key])
    assert tuple(int(word) for word in words) == expected


def test_noise_depends_on_its_own_key_and_step_only():
    keys = [noise_key(0, 1, f"s{i}", role) for i in range(4) for role in ("low", "high")]
    together = gumbel(keys, [5] * 8, 101, CPU)
    alone = gumbel([keys[3]], [5], 101, CPU)
    assert torch.equal(together[3:4], alone)
    others = {noise_key(1, 1, "s", "low"), noise_key(0, 2, "s", "low"), noise_key(0, 1, "t", "low")}
    assert len(others | {noise_key(0, 1, "s", "low"), noise_key(0, 1, "s", "high")}) == 5
    assert not torch.equal(alone, gumbel([keys[3]], [6], 101, CPU))


def test_draws_follow_the_distribution():
    log_probs = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0])).expand(20_000, 5)
    noise = gumbel([noise_key(0, 1, str(i), "low") for i in range(20_000)], [0] * 20_000, 5, CPU)
    drawn = draw(log_probs, noise, torch.zeros(20_000, dtype=torch.bool))
    shares = torch.bincount(drawn, minlength=5) / 20_000
    assert torch.allclose(shares, torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0]), atol=0.012)  # about 3.5 sigma
    assert shares[4] == 0


def test_greedy_rows_take_the_most_probable_token_and_suppressed_ones_are_never_drawn():
    log_probs = torch.log(torch.tensor([[0.2, 0.5, 0.3]]))
    noise = torch.tensor([[50.0, 0.0, 0.0]])
    assert draw(log_probs, noise, torch.tensor([True])).item() == 1
    assert draw(log_probs, noise, torch.tensor([False])).item() == 0
    assert draw(log_probs, noise, torch.tensor([False]), suppressed=(0,)).item() == 1
