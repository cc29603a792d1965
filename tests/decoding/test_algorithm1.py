"""Every mixing against its definition in ``algorithm1.py``, with zero probabilities and truncation."""

import itertools
import math

import pytest
import torch

from jsfree.config import Contrast, Decoding
from jsfree.decoding import algorithm1
from jsfree.decoding.mixing import MIXINGS, BatchSettings, M3id, Mixing, Vcd, contrastive_mixing, path_probs
from jsfree.decoding.sampling import NO_TOKEN, NoiseStream, sample_tokens

CPU = torch.device("cpu")
VOCABULARY = 70  # more than a block of the sampler
SUPPRESSED = (3, 40)
CASES = {
    "probability": MIXINGS["probability"],
    "logit": MIXINGS["logit"],
    "vcd": Vcd(1.0, 0.1, None),
    "vcd-strong": Vcd(2.5, 1e-6, None),
    "m3id": contrastive_mixing(Contrast(kind="m3id")),
    "m3id-always": M3id(0.2, 1.0),
}
CUTS = (
    {},
    {"top_p": 0.8},
    {"top_k": 5},
    {"top_k": 5, "top_p": 0.65},  # off the sums of equal probabilities, where rounding decides
    {"top_k": 69, "top_p": 0.9999},  # more tokens than have any mass
    {"top_p": 1e-38},
    {"top_p": 5e-324},
)
TEMPERATURES = (5e-324, 1e-38, 1e-12, 1e-6, 0, 0.7, 1, 100, 1e300)


def empty_tokens(pattern: str) -> tuple[list[int], list[int]]:
    """Tokens without mass in the first and in the second path."""
    some, others = list(range(0, VOCABULARY, 2)), list(range(0, VOCABULARY, 3))
    patterns = {"none": ([], []), "first": (some, []), "second": ([], some), "both": (some, some)}
    return patterns.get(pattern, (some, others))


def logits_of(pattern: str, dtype: torch.dtype, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    paths = [torch.randn(VOCABULARY, generator=generator) * 3 for _ in range(2)]
    for logits, empty in zip(paths, empty_tokens(pattern), strict=True):
        logits[empty] = -torch.inf
        logits[list(SUPPRESSED)] = 200.0  # all the mass, were they not suppressed
    return paths[0].to(dtype), paths[1].to(dtype)


def allowed(logits: torch.Tensor) -> torch.Tensor:
    """Logits, (..., V), without the tokens that must not be drawn."""
    return logits.index_fill(-1, torch.tensor(SUPPRESSED), -torch.inf)


def literal(logits: torch.Tensor) -> torch.Tensor:
    return allowed(logits).double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mixing", CASES.values(), ids=CASES)
def test_a_batch_of_all_settings_matches_the_definitions(mixing: Mixing, dtype):
    """BatchSettings of every cut, temperature, place of zero mass and ratio, all in one batch."""
    patterns = ("none", "first", "second", "both", "different")
    cases = list(itertools.product(patterns, CUTS, TEMPERATURES))
    decodings = [Decoding(temperature=temperature, **cut) for _, cut, temperature in cases]
    paths = [logits_of(pattern, dtype, seed % 23) for seed, (pattern, *_) in enumerate(cases)]
    ratios = [(0.0, 0.3, 0.5, 0.8, 1.0)[seed % 5 if seed % 11 else seed % 3] for seed in range(len(cases))]
    steps = [(0, 1, 40, 5000)[seed % 4] for seed in range(len(cases))]
    table = torch.cat([torch.stack(path) for path in zip(*paths, strict=True)])
    count = len(cases)
    rows = BatchSettings.of(decodings, ratios, steps, CPU)
    found = mixing.next_token_probs(allowed(table), [[row] for row in range(count)], range(count, 2 * count), rows)
    for case, probs, (first, second), ratio, decoding, step in zip(
        cases, found, paths, ratios, decodings, steps, strict=True
    ):
        expected = algorithm1.mixture(literal(first)[None], literal(second), ratio, decoding, step, mixing)
        assert (probs.double() - expected).abs().max() < 2e-5, (case, ratio, step)


def test_captions_with_one_and_with_two_paths_share_a_batch():
    paths = [logits_of("first", torch.float32, seed) for seed in range(4)]
    decodings = [Decoding(**cut) for cut in ({}, {"top_k": 3}, {"top_p": 0.5}, {"temperature": 1e-38})]
    rows = BatchSettings.of(decodings, [0.5, 0.0, 0.5, 0.0], [0] * 4, CPU)
    table = torch.stack([path for pair in paths for path in pair])
    for mixing in (MIXINGS["probability"], MIXINGS["logit"]):
        found = mixing.next_token_probs(allowed(table), [[0], [2], [4], [6]], [1, None, 5, None], rows)
        for probs, (first, second), decoding, ratio in zip(found, paths, decodings, (0.5, 0.0, 0.5, 0.0), strict=True):
            expected = algorithm1.mixture(literal(first)[None], literal(second), ratio, decoding, 0, mixing)
            assert (probs.double() - expected).abs().max() < 1e-6


@pytest.mark.parametrize("tiny", [{"temperature": 1e-38}, {"temperature": 5e-324}, {"temperature": 1e-10}])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4, 3e38])
def test_a_tiny_temperature_is_greedy_also_in_ties(tiny, scale):
    logits = torch.tensor([[0.1, 0.9, -1.0, 0.9, 0.2], [-1.0, -0.5, -0.5, -0.5, -0.9]]) * scale
    noise = torch.from_numpy(NoiseStream(0, 5).next_token())[None].expand(2, -1)
    greedy = sample_tokens(
        path_probs(logits, BatchSettings.of([Decoding(temperature=0)] * 2, [0.0] * 2, [0] * 2, CPU)), noise, [True] * 2
    )
    cold = path_probs(logits, BatchSettings.of([Decoding(**tiny)] * 2, [0.0] * 2, [0] * 2, CPU))
    assert torch.equal(cold, torch.nn.functional.one_hot(greedy, 5).float())
    assert greedy.tolist() == [1, 1]


def test_dividing_by_a_small_temperature_does_not_overflow():
    logits = torch.tensor([[3e38, -3e38, 2e38]])
    rows = BatchSettings.of([Decoding(temperature=1e-6)], [0.0], [0], CPU)
    assert path_probs(logits, rows).tolist() == [[1.0, 0.0, 0.0]]


def distribution(mixing: Mixing, first: list[float], second: list[float], ratio: float = 0.5, step: int = 5):
    """The mixture of two paths with given probabilities of four tokens."""
    rows = BatchSettings.of([Decoding()], [ratio], [step], CPU)
    return mixing.probs(torch.tensor([first]).log(), torch.tensor([second]).log(), rows)[0].tolist()


def test_zero_probabilities_are_limits():
    first, second = [0.6, 0.3, 0.1, 0.0], [0.0, 0.2, 0.3, 0.5]
    logit, vcd, m3id = MIXINGS["logit"], Vcd(1.0, 1e-3, None), M3id(math.log(2), 1.0)
    # A product with zero is zero, but 0^0 is 1.
    root = [math.sqrt(0.3 * 0.2), math.sqrt(0.1 * 0.3)]
    assert distribution(logit, first, second) == pytest.approx([0, root[0] / sum(root), root[1] / sum(root), 0])
    assert distribution(logit, first, second, ratio=0.0) == pytest.approx(first)
    assert distribution(logit, first, second, ratio=1.0) == pytest.approx(second)
    # Divided by zero, a token takes all the mass; one that the image rules out never has any.
    for contrast in (vcd, m3id):
        assert distribution(contrast, first, second) == pytest.approx([1, 0, 0, 0])
        two = distribution(contrast, [0.6, 0.3, 0.1, 0.0], [0.0, 0.0, 0.5, 0.5])
        assert two[2:] == [0, 0]
        assert sum(two) == pytest.approx(1)
    assert distribution(vcd, [0.6, 0.3, 0.1, 0.0], [0.0, 0.0, 0.5, 0.5])[0] == pytest.approx(0.36 / 0.45)
    # No correction, no division.
    assert distribution(m3id, first, second, step=0) == pytest.approx(first)
    assert distribution(Vcd(0.0, 1e-3, None), first, second) == pytest.approx(first)
    # Supports that do not meet: the limit for a small number in place of zero.
    apart = ([0.75, 0.25, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5])
    assert distribution(logit, *apart, ratio=0.25)[2:] == [0, 0]
    assert sum(distribution(logit, *apart, ratio=0.25)) == pytest.approx(1)


@pytest.mark.parametrize("zero", [-math.inf, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("mixing", CASES.values(), ids=CASES)
def test_limits_agree_with_the_oracle_if_supports_hardly_overlap(mixing, zero):
    generator = torch.Generator().manual_seed(0)
    for case in range(200):
        paths = torch.randn(2, 6, generator=generator) * 3
        dropped = torch.rand(2, 6, generator=generator) < 0.6
        dropped[:, case % 6] &= torch.tensor([case % 2 == 0, case % 3 == 0])  # often, but not always, a common token
        dropped[torch.arange(2), paths.argmax(-1)] = False  # no path is empty
        first, second = paths.masked_fill(dropped, zero)
        ratio, step = (0.0, 0.3, 0.5, 0.8, 1.0)[case % 5], (0, 1, 40)[case % 3]
        rows = BatchSettings.of([Decoding()], [ratio], [step], CPU)
        found = mixing.next_token_probs(torch.stack([first, second]), [[0]], [1], rows)[0].double()
        expected = algorithm1.mixture(first.double()[None], second.double(), ratio, Decoding(), step, mixing)
        assert (found - expected).abs().max() < 2e-5, (case, first, second, ratio)


@pytest.mark.parametrize("mixing", CASES.values(), ids=CASES)
def test_the_lowest_finite_logit_counts_as_no_mass(mixing):
    first, second = logits_of("different", torch.float32, 7)
    rows = BatchSettings.of([Decoding(temperature=0.5)] * 3, [0.2, 0.5, 0.8], [3] * 3, CPU)
    lowest = [path.masked_fill(path == -torch.inf, torch.finfo(torch.float32).min) for path in (first, second)]
    expected, found = (
        mixing.probs(pair[0].expand(3, -1), pair[1].expand(3, -1), rows) for pair in ((first, second), lowest)
    )
    assert found.isfinite().all()
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("mixing", CASES.values(), ids=CASES)
@pytest.mark.parametrize("cut", [{}, {"top_k": 2}, {"top_p": 0.5}, {"temperature": 0.5}])
@pytest.mark.parametrize("broken", [-math.inf, math.nan])
def test_a_row_without_any_mass_has_no_token(mixing, cut, broken):
    first, second = (path.expand(2, -1).clone() for path in logits_of("none", torch.float32, 1))
    for path in (first, second):
        path[1] = broken
    rows = BatchSettings.of([Decoding(**cut)] * 2, [0.5] * 2, [3] * 2, CPU)
    probs = mixing.next_token_probs(allowed(torch.cat((first, second))), [[0], [1]], [2, 3], rows)
    noise = torch.from_numpy(NoiseStream(0, VOCABULARY).next_token())[None].expand(2, -1)
    for greedy in (True, False):
        tokens = sample_tokens(probs, noise, [greedy] * 2).tolist()
        assert 0 <= tokens[0] < VOCABULARY
        assert tokens[0] not in SUPPRESSED
        assert tokens[1] == NO_TOKEN
