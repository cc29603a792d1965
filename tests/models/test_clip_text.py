"""Texts are encoded as open_clip encodes each alone at full length, whatever the kind of text tower."""

import open_clip
import pytest
import torch

from jsfree.models.clip import load_clip
from jsfree.models.clip_text import TextEncoder, causal_tower
from tests.support import tiny_clips

TEXTS = [
    "a dog",
    "There is a red ball, at the left!",
    "Two men with hats; a very large brown horse.",
    "a",
    "One two three four five six seven eight nine ten",
    "été, 一只猫",
    *(f"the number {number} dog {'runs ' * (number % 5)}" for number in range(30)),
]


@pytest.fixture(params=tiny_clips.KINDS)
def kind(request):
    return request.param


@pytest.fixture
def folder(kind, tmp_path):
    return tiny_clips.write(tmp_path / "clip", kind)


@torch.inference_mode()
def alone(folder, texts):
    """Each text encoded alone at full length, by a model and tokenizer that open_clip loads itself."""
    model = open_clip.create_model(f"local-dir:{folder}", require_pretrained=True).eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    assert all(tokenizer([text]).shape == (1, model.context_length) for text in texts)
    return torch.cat([model.encode_text(tokenizer([text]), normalize=True) for text in texts])


def test_texts_are_encoded_as_open_clip_encodes_each_alone(folder, kind):
    encoder = TextEncoder(load_clip(str(folder)))
    assert encoder.is_causal == (kind in tiny_clips.CUT)
    encoded, _ = encoder.encode(TEXTS)
    assert (encoded - alone(folder, TEXTS)).abs().max() < 1e-6


@pytest.mark.parametrize("kind", sorted(set(tiny_clips.KINDS) - tiny_clips.CUT), indirect=True)
def test_cutting_the_padding_of_a_tower_that_is_not_causal_would_change_its_scores(folder):
    """The test above would fail if such a tower were cut."""
    clip = load_clip(str(folder))
    assert causal_tower(clip.model) is None
    tokens = clip.tokenizer(TEXTS[:4], clip.context_length)
    full = clip.model.encode_text(tokens, normalize=True)
    text = clip.model.text
    text.positional_embedding = torch.nn.Parameter(text.positional_embedding[:14])
    cut = clip.model.encode_text(tokens[:, :14], normalize=True)
    assert (full - cut).abs().max() > 0.01


def test_a_text_fits_if_no_token_is_lost(folder, kind):
    """The number of tokens that a text needs is that of a context which is long enough for any of these texts."""
    clip = load_clip(str(folder))
    encoder, context = TextEncoder(clip), clip.context_length
    texts = [*TEXTS, "", *(f"{'dog ' * count}{last}" for count in range(context + 3) for last in ("cup", "cat."))]
    complete = clip.tokenizer(texts, 3 * context)
    padding = clip.tokenizer([""], 3 * context)[0, -2]
    end = complete[0, -1]
    needed = []
    for tokens in complete:
        body = tokens[:-1] if end != padding else tokens
        used = int((body != padding).nonzero().max()) + 1 if bool((body != padding).any()) else 0
        needed.append(used + (1 if kind in ("siglip", "clipa", "openvision") else 0))
    assert encoder.fit(texts) == [number <= context for number in needed]
    assert {True, False} == set(encoder.fit(texts))


def test_punctuation_and_capitals_do_not_matter_to_a_tokenizer_that_canonicalizes(tmp_path):
    encoder = TextEncoder(load_clip(str(tiny_clips.write(tmp_path / "clip", "siglip2"))))
    first, second = encoder.encode(["A red dog, at the left.", "a red dog at the left"])[0]
    assert torch.equal(first, second)


def test_tokens_are_counted_without_padding(folder, kind):
    _, tokens = TextEncoder(load_clip(str(folder))).encode(["a dog", "a red dog"])
    extra = {"siglip": 0, "clipa": 1, "siglip2": 1, "openvision": 3}.get(kind, 2)
    assert tokens == 2 + 3 + 2 * extra
