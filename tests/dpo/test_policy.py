"""Both captions after one prefix: the log-probabilities and gradients of two rows of their own."""

import copy

import pytest
import torch

from jsfree.config import build
from jsfree.dpo import policy as policies
from jsfree.dpo.batching import PADDING, attention_mask, collate, flex_mask, image_inputs
from jsfree.dpo.loss import Lengths, PairLogps, preference_loss
from jsfree.dpo.policy import CompletionHead, PairModel
from jsfree.errors import ModelError
from jsfree.images.decoding import load_image
from jsfree.images.sources import training_samples
from jsfree.models.families.base import split_features
from jsfree.models.loading import load_captioner
from jsfree.stages.captioning import PairGenerator

SMALL = build({"source": {"count": 6}}, where="test")


@pytest.fixture(scope="module")
def pairs():
    rows = PairGenerator(SMALL, "miniworld:captioner", round_number=1)(training_samples(SMALL, 1)).rows
    return [{**row, "chosen": row["low"], "rejected": row["high"]} for row in rows]


def apart(captioner, pairs) -> PairLogps:
    """Each caption in a row of its own, unpadded, with the model's own forward and head."""
    sums = {"chosen": [], "rejected": []}
    for pair in pairs:
        prompt = captioner.prompt_ids(pair["prompt"], captioner.blank)
        image = captioner.batch([captioner.inputs(load_image(pair["image"], SMALL.source)[0])])
        for role, found in sums.items():
            tokens = list(pair[role]["token_ids"])
            logits = captioner.model(input_ids=torch.tensor([[*prompt, *tokens]]), **image).logits[0]
            logps = torch.log_softmax(logits[len(prompt) - 1 : -1].float(), -1)
            found.append(logps[range(len(tokens)), tokens].sum())
    return PairLogps(torch.stack(sums["chosen"]), torch.stack(sums["rejected"]))


def gradients(captioner, logps: PairLogps, pairs) -> dict[str, torch.Tensor]:
    captioner.model.zero_grad()
    reference = PairLogps(logps.chosen.detach() - 1, logps.rejected.detach())
    lengths = Lengths(*(torch.tensor([len(p[role]["token_ids"]) for p in pairs]) for role in ("chosen", "rejected")))
    preference_loss(logps, reference, lengths, beta=SMALL.train.beta).loss.mean().backward()
    return {name: weight.grad.clone() for name, weight in captioner.model.named_parameters() if weight.grad is not None}


def placed(captioner, pairs):
    return collate(pairs, captioner, SMALL.source).to(captioner.device, captioner.model.dtype)


def test_gradients_equal_those_of_two_forwards(pairs):
    captioner = load_captioner("miniworld:captioner")
    captioner.model.model.vision_tower.requires_grad_(False)
    expected = gradients(captioner, apart(captioner, pairs), pairs)
    found = gradients(captioner, PairLogps.of(PairModel(captioner.model)(placed(captioner, pairs))), pairs)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert float((found[name] - gradient).norm() / gradient.norm()) < 1e-5, name


def test_log_probabilities_near_a_thousand_agree_to_a_thousandth(pairs):
    """Captions of a few hundred random tokens, which the model finds very unlikely."""
    captioner = load_captioner("miniworld:captioner")
    generator = torch.Generator().manual_seed(0)
    drawn = [
        {"token_ids": torch.randint(5, 60, (count,), generator=generator).tolist()} for count in (120, 97, 80, 110)
    ]
    unlikely = [{**pairs[at], "chosen": drawn[2 * at], "rejected": drawn[2 * at + 1]} for at in range(2)]
    with torch.no_grad():
        expected = apart(captioner, unlikely)
        found = PairLogps.of(PairModel(captioner.model)(placed(captioner, unlikely)))
    assert float(expected.chosen.abs().max()) > 700
    torch.testing.assert_close(found.chosen, expected.chosen, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.rejected, expected.rejected, atol=1e-3, rtol=0)


def test_log_probabilities_in_bfloat16_agree_to_a_hundredth_per_token(pairs):
    captioner = load_captioner("miniworld:captioner", dtype="bfloat16")
    with torch.no_grad():
        expected, batch = apart(captioner, pairs), placed(captioner, pairs)
        found = PairLogps.of(PairModel(captioner.model)(batch))
    lengths = Lengths.of(batch.lengths)
    assert float(((found.chosen - expected.chosen) / lengths.chosen).abs().max()) < 0.01
    assert float(((found.rejected - expected.rejected) / lengths.rejected).abs().max()) < 0.01


def test_a_caption_does_not_depend_on_the_other_caption_or_other_rows(captioner, pairs):
    model = PairModel(captioner.model)
    other = [{**pair, "chosen": {"token_ids": [7, 8, 9] * 20}} for pair in pairs]
    with torch.no_grad():
        logps, changed = model(placed(captioner, pairs)), model(placed(captioner, other))
        alone = model(placed(captioner, pairs[:1]))
    torch.testing.assert_close(changed["rejected"], logps["rejected"], atol=1e-4, rtol=0)
    assert not torch.isclose(changed["chosen"], logps["chosen"]).any()
    torch.testing.assert_close(alone["chosen"][0], logps["chosen"][0], atol=1e-4, rtol=0)


def test_mask_shows_each_caption_the_prefix_and_itself():
    segments = torch.tensor([[0, 0, 1, 1, 2, PADDING]])
    seen = attention_mask(segments, torch.float32)[0, 0] == 0
    assert [row.nonzero().flatten().tolist() for row in seen] == [
        [0],
        [0, 1],
        [0, 1, 2],
        [0, 1, 2, 3],
        [0, 1, 4],
        [0, 1, 5],
    ]


def test_flex_mask_equals_the_dense_mask(captioner, pairs):
    from torch.nn.attention.flex_attention import create_mask

    segments = placed(captioner, pairs).segments_BL
    rows, length = segments.shape
    dense = create_mask(flex_mask(segments), rows, None, length, length, device="cpu")
    assert torch.equal(dense[:, :1], attention_mask(segments, torch.float32) == 0)


def test_chunked_logits_give_the_same_log_probabilities_and_gradients(captioner, monkeypatch):
    generator = torch.Generator().manual_seed(1)
    head = CompletionHead.of(copy.deepcopy(captioner.model.lm_head))
    hidden = torch.randn(50, head.in_features, generator=generator, requires_grad=True)
    targets = torch.randint(head.out_features, (50,), generator=generator)
    results = []
    for chunk in (1024, 7):
        monkeypatch.setattr(policies, "HEAD_CHUNK", chunk)
        hidden.grad = head.weight.grad = None
        logps = head(hidden, targets)
        (logps * torch.arange(50.0)).sum().backward()
        results.append((logps.detach(), hidden.grad.clone(), head.weight.grad.clone()))
    for whole, parts in zip(*results, strict=True):
        assert float((parts - whole).norm() / whole.norm()) < 1e-6
    expected = torch.log_softmax(head(hidden), -1)[range(50), targets]
    torch.testing.assert_close(results[0][0], expected.detach())


def test_features_give_the_same_result_as_pixels(captioner, pairs):
    model, batch = PairModel(captioner.model), placed(captioner, pairs)
    with torch.no_grad():
        images = image_inputs(pairs, captioner, SMALL.source)
        again = collate(pairs, captioner, SMALL.source, split_features(model.vision_features(batch.images), images))
        assert again.images.keys() == {"features"}
        assert torch.equal(model(again)["chosen"], model(batch)["chosen"])


def test_a_prompt_with_another_number_of_image_tokens_is_refused(captioner, pairs):
    batch = placed(captioner, pairs)
    batch.ids_BL[0, batch.ids_BL[0] == captioner.model.config.image_token_index] = 5
    with (
        torch.no_grad(),
        pytest.raises(ModelError, match="image tokens in the prompts of 6 rows, but 96 visual tokens"),
    ):
        PairModel(captioner.model)(batch)
