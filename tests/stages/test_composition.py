"""Pairs and composed captions of handwritten images, against those formed by hand."""

import numpy as np
import pytest

from jsfree.stages.candidate_sentences import Sentence
from jsfree.stages.claims import Claims
from jsfree.stages.composition import VerifiedImage, form_pair
from jsfree.stages.composition import compose as compose_randomly
from jsfree.stages.verification import Verifier
from tests.support.sentences import said

RARE = {"scene": 4, "cup": 2, "bus": 3, "cow": 1, "dog": 1, "hat": 1}
CLAIMS = Claims({noun: noun for noun in RARE}, {**RARE, "a": 99, "b": 99, "it": 50, "is": 60, "red": 40})
END = (2,)
LOGIT = Verifier((10.0, 0.0), 0.0)  # log-odds are ten times the cosine


def sentence(noun: str, cosine: float, wording: str = "a", role: str = "low") -> Sentence:
    return said(wording, *noun.split("+"), cosine=cosine, role=role)


def image(**captions) -> VerifiedImage:
    """An image with these captions; a claim has the log-odds of its best cosine."""
    logits = {}
    for caption in captions.values():
        for each in caption:
            for claim in CLAIMS(each):
                logits[claim] = max(logits.get(claim, -99.0), 10 * each.cosine)
    return VerifiedImage(captions, dict.fromkeys(captions, END), logits, CLAIMS.probabilities, LOGIT)


def compose(verified, bases, seed=0):
    return compose_randomly(verified, bases, np.random.default_rng(seed))[0]


def nouns(text: str) -> list[str]:
    return [part.split()[1] for part in text.split(".") if part]


def pair_of(verified, seed=0, **settings):
    rng = np.random.default_rng(seed)
    return form_pair(verified, **{"edited": 0.0, "repeated": 0.0, "keep_truncated": False, "rng": rng, **settings})


def test_a_caption_is_scored_by_what_it_covers_and_repeats():
    true, also, false = sentence("cup", 3.0), sentence("bus", 3.0), sentence("cow", -3.0)
    verified = image(low=[true, also, false])
    assert verified.score([true]) == pytest.approx(0.5)
    assert verified.score([true, also]) == pytest.approx(1.0)
    assert verified.score([true, also, false]) == pytest.approx(0.5)
    assert verified.score([true, true]) == pytest.approx(0.0)
    assert verified.score([]) == 0.0


def test_the_composed_caption_keeps_true_sentences_and_adds_missing_ones():
    low = [sentence("scene", 3), sentence("cow", -3), sentence("cup", 1), sentence("cup", 2, "b")]
    other = [sentence("scene", 3, role="sample-1"), sentence("dog", 0.5, role="sample-1"), sentence("bus", 2, "b")]
    target = compose(image(low=low, **{"sample-1": other}), {"low": low, "sample-1": other})
    assert (target["role"], nouns(target["text"])) == ("sample-1", ["scene", "dog", "bus", "cup"])
    assert target["text"].endswith("b cup.")  # the wording with more evidence
    assert [edit["action"] for edit in target["edits"]] == ["kept", "kept", "kept", "added"]
    assert target["token_ids"][-1:] == list(END)
    assert target["token_ids"][:2] == list(sentence("scene", 3).token_ids)


@pytest.mark.parametrize(("cosine", "expected"), [(-3.0, 1.0), (0.0, 0.5), (np.log(3) / 10, 0.25), (3.0, 0.0)])
def test_a_composed_caption_ends_as_often_as_it_is_complete(cosine, expected):
    base = [sentence("scene", 3), sentence("cup", 3)]
    # The only other claim is made together with a false one, so it can never be added.
    other = [sentence("dog+cow", cosine, role="sample-1")]
    logits = {"scene": 30.0, "cup": 30.0, "dog": 10 * cosine, "cow": -30.0}
    verified = VerifiedImage(
        {"low": base, "sample-1": other}, dict.fromkeys(("low", "sample-1"), END), logits, CLAIMS.probabilities, LOGIT
    )
    composed = [compose_randomly(verified, {"low": base}, np.random.default_rng(seed)) for seed in range(400)]
    without_end = [token for each in base for token in each.token_ids]
    for caption, ends in composed:
        assert caption["token_ids"] == without_end + list(END) * ends
    assert np.mean([ends for _, ends in composed]) == pytest.approx(expected, abs=0.08)


def test_an_image_without_a_true_sentence_gives_no_pair():
    """Its composed caption would be empty."""
    low, high = [sentence("cow", -3), sentence("dog", -3)], [sentence("bus", -3)]
    assert pair_of(image(low=low, high=high)) is None
    assert pair_of(image(low=[*low, sentence("cup", 3)], high=high)) is not None


def test_edits_name_every_sentence_that_was_left_out():
    low = [sentence("scene", 3), sentence("cow", -3), sentence("cup", 2), sentence("cup", 2)]
    target = compose(image(low=low), {"low": low})
    assert [(edit["action"], edit["text"]) for edit in target["edits"]] == [
        ("kept", "a scene."),
        ("removed", "a cow."),
        ("kept", "a cup."),
        ("repeated", "a cup."),
    ]
    assert target["edits"][1]["logit"] == pytest.approx(-30.0)


def test_the_candidate_that_covers_most_is_chosen_unedited():
    low = [sentence("scene", 3), sentence("cow", -3)]
    better = [sentence("scene", 3), sentence("cup", 3), sentence("cow", -3)]
    high = [sentence("dog", -3)]
    pair = pair_of(image(low=low, high=high, **{"sample-1": better}))
    assert (pair.chosen, pair.provenance["rejected"]) == ("sample-1", "high")
    assert pair.rejected == high
    assert pair.gap == pytest.approx(1.0)
    assert not pair.is_edited


def test_a_loser_that_covers_more_is_replaced_by_an_edit():
    low = [sentence("scene", 3), sentence("cup", 3)]
    high = [*low, sentence("bus", 3)]
    pair = pair_of(image(low=low, high=high))
    assert pair.provenance == {"chosen": "low", "rejected": "low", "edit": "omitted", "sentence": "a cup."}
    assert pair.rejected == low[:1]


@pytest.mark.parametrize("seed", range(5))
def test_an_omission_is_of_a_certain_sentence_but_not_the_first(seed):
    low = [sentence("scene", 3), sentence("cow", 0.05), sentence("cup", 3), sentence("bus", 3)]
    pair = pair_of(image(low=low, high=[sentence("dog", -3)]), seed, edited=1.0)
    assert pair.provenance["sentence"] in ("a cup.", "a bus.")
    assert [each for each in low if each not in pair.rejected] == [
        each for each in low if each.text == pair.provenance["sentence"]
    ]


@pytest.mark.parametrize("seed", range(5))
def test_an_omission_is_not_of_a_sentence_that_is_said_twice(seed):
    low = [sentence("scene", 3), sentence("cup", 3), sentence("cup", 3, "b"), sentence("bus", 3)]
    pair = pair_of(image(low=low, high=[sentence("dog", -3)]), seed, edited=1.0)
    assert pair.provenance["sentence"] == "a bus."
    assert pair.gap > 0


@pytest.mark.parametrize("seed", range(5))
def test_a_repetition_says_a_sentence_again_later(seed):
    low = [sentence("scene", 3), sentence("cup", 3), sentence("bus", 3)]
    other = [sentence("bus", 2, "b", "sample-1")]
    pair = pair_of(image(low=low, high=[sentence("dog", -3)], **{"sample-1": other}), seed, edited=1.0, repeated=1.0)
    assert pair.provenance["edit"] == "repeated"
    said = [each.text.split()[1] for each in pair.rejected]
    assert len(said) == 4
    again = next(noun for noun in ("cup.", "bus.") if said.count(noun) == 2)
    assert [noun for number, noun in enumerate(said) if noun not in said[:number]] == ["scene.", "cup.", "bus."]
    assert said.index(again) < len(said) - 1 - said[::-1].index(again)
    assert pair.gap == pytest.approx(0.5)


def test_truncated_candidates_are_not_used():
    low, high = [sentence("scene", 3), sentence("cup", 3)], [sentence("cow", -3)]
    verified = image(low=low, high=high)
    cut = VerifiedImage(verified.captions, {"low": (), "high": END}, verified.logits, verified.probabilities, LOGIT)
    assert pair_of(cut) is None
    kept = pair_of(cut, keep_truncated=True)
    assert kept is not None
    assert kept.target["token_ids"][-1] != END[0]


def test_an_image_without_two_captions_to_tell_apart_gives_no_pair():
    low = [sentence("scene", 3)]
    assert pair_of(image(low=low, high=low)) is None


def test_a_sentence_is_as_certain_as_its_least_certain_claim():
    verified = image(low=[sentence("cup", 3), sentence("cow", -3), sentence("cup+cow", -4)])
    assert verified.logit(sentence("cup+cow", 9)) == pytest.approx(-30.0)
    assert compose(verified, {"low": verified.captions["low"]})["text"] == "a cup."


def added_to(low: list[Sentence], other: list[Sentence]) -> list[str]:
    target = compose(image(low=low, high=other), {"low": low})
    return [edit["text"] for edit in target["edits"] if edit["action"] == "added"]


def test_a_sentence_is_added_if_at_least_half_of_it_is_new():
    low = [sentence("scene", 3), sentence("cup", 3), sentence("bus", 3)]
    assert added_to(low, [sentence("cup+bus+dog", 3)]) == []
    assert added_to(low, [sentence("cup+dog", 3)]) == ["a cup dog."]
    assert added_to(low, [sentence("cup+cow+hat", 3)]) == ["a cup cow hat."]


def test_sentences_that_repeat_less_are_added_first():
    low = [sentence("scene", 3), sentence("cup", 3)]
    assert added_to(low, [sentence("cup+dog", 5), sentence("dog", 2), sentence("hat", 1)]) == ["a dog.", "a hat."]


IT = said("it", "is", "red", cosine=3.0)


def test_a_pronoun_is_kept_with_the_sentence_that_it_follows():
    low = [sentence("scene", 3), sentence("cow", -3), IT, sentence("cup", 3), said("it", "is", "hat", cosine=3.0)]
    target = compose(image(low=low), {"low": low})
    assert target["text"] == "a scene. a cup. it is hat."


def test_a_sentence_with_a_pronoun_is_not_added():
    low = [sentence("scene", 3)]
    target = compose(image(low=low, high=[sentence("cup", 3), said("it", "is", "hat", cosine=3.0)]), {"low": low})
    assert target["text"] == "a scene. a cup."


@pytest.mark.parametrize("seed", range(5))
def test_no_edit_separates_a_pronoun_from_its_sentence(seed):
    low = [sentence("scene", 3), sentence("cup", 3), IT, sentence("bus", 3)]
    omitted = pair_of(image(low=low), seed, edited=1.0)
    assert omitted.provenance["sentence"] in ("a bus.", "it is red.")
    repeated = pair_of(image(low=low), seed, edited=1.0, repeated=1.0)
    assert repeated.provenance["sentence"] in ("a cup.", "a bus.")
