"""Counts of mentions and errors in handwritten captions, against counts made by hand."""

import pytest

from jsfree.errors import ConfigError
from jsfree.evaluation.miniworld import count_caption, hallucinated_mentions, mentions, summarise
from jsfree.miniworld import world
from jsfree.miniworld.world import Scene, SceneObject

SCENE = Scene(
    "miniworld-development-000000",
    "development",
    0,
    "kitchen",
    (
        SceneObject("cup", "red", "at the top left", (0, 0, 16, 16)),
        SceneObject("bus", "blue", "on the right", (48, 24, 64, 40)),
        SceneObject("fish", "green", "at the bottom", (24, 46, 40, 62)),
    ),
)


def test_the_true_caption_has_no_errors():
    count = count_caption(SCENE, world.true_caption(SCENE))
    assert (count.mentions, count.hallucinated, count.distinct_correct, count.attribute_errors) == (3, 0, 3, 0)
    assert (count.truth_objects, count.duplicates) == (3, 0)


def test_an_absent_object_is_found_with_its_position_in_the_text():
    text = "This is a kitchen. There is a red cup at the top left. There is a black kettle on the left."
    (absent,) = hallucinated_mentions(SCENE, text)
    assert text[absent.start : absent.end] == absent.noun == "kettle"
    assert (absent.colour, absent.position) == ("black", "on the left")


def test_repeated_mentions_are_not_distinct_mentions():
    count = count_caption(SCENE, "A red cup. A red cup. The cup. A kettle and a kettle.")
    assert (count.mentions, count.distinct, count.duplicates) == (5, 2, 3)
    assert (count.hallucinated, count.distinct_correct) == (2, 1)


@pytest.mark.parametrize(
    ("text", "errors"),
    [
        ("There is a blue cup at the top left.", 1),
        ("There is a red cup at the bottom.", 1),
        ("There is a blue cup at the bottom.", 1),
        ("There is a cup.", 0),
        ("There is a purple kettle.", 0),
        ("There is a red cup and a blue bus.", 0),
        ("There is a red cup and a bus, blue.", 0),
    ],
)
def test_wrong_attributes_are_counted(text, errors):
    assert count_caption(SCENE, text).attribute_errors == errors


@pytest.mark.parametrize(
    ("text", "invented", "misnamed"),
    [
        ("There is a red kettle at the top left.", 0, 1),
        ("There is a red kettle at the top left. There is a red cup at the top left.", 0, 0),
        ("There is a red kettle on the right.", 1, 0),
        ("There is a blue kettle at the top left.", 1, 0),
        ("There is a kettle at the top left.", 0, 1),
        ("There is a red kettle.", 1, 0),
        ("There is a red cup at the bottom.", 0, 0),
    ],
)
def test_an_absent_object_is_invented_or_takes_the_place_of_an_omitted_one(text, invented, misnamed):
    count = count_caption(SCENE, text)
    assert (count.invented, count.misnamed) == (invented, misnamed)


def test_word_order_case_plurals_and_spacing_do_not_matter():
    found = mentions("On the LEFT are two Red Cups, three blue BUSES at the  top\nfishes here")
    assert [(mention.noun, mention.colour, mention.position) for mention in found] == [
        ("cup", "red", "on the left"),
        ("bus", "blue", "at the top"),
        ("fish", None, None),
    ]


def test_a_longer_phrase_is_not_mistaken_for_a_shorter_one():
    (found,) = mentions("a cup at the top left")
    assert found.position == "at the top left"


@pytest.mark.parametrize(
    ("text", "noun"),
    [
        ("A mug.", "cup"),
        ("Two puppies.", "dog"),
        ("three COACHES", "bus"),
        ("An old tv", "television"),
        ("a teddy  bear", "bear"),
        ("A teddy.", "bear"),
        ("the lorries", "truck"),
    ],
)
def test_a_synonym_counts_as_one_mention_of_its_object(text, noun):
    assert [mention.noun for mention in mentions(text)] == [noun]


def test_synonyms_of_an_object_repeat_each_other():
    count = count_caption(SCENE, "A cup and a mug. A teapot.")
    assert (count.mentions, count.distinct, count.hallucinated, count.distinct_correct) == (3, 2, 1, 1)


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("a mug in the upper left", "at the top left"),
        ("a mug in the top left corner", "at the top left"),
        ("a mug on the left side", "on the left"),
        ("In the center, there is a mug.", "in the middle"),
        ("a mug to the left of a bus", None),
    ],
)
def test_wordings_of_a_position_are_equivalent(text, position):
    assert mentions(text)[0].position == position


@pytest.mark.parametrize(
    ("text", "errors"),
    [
        ("There is a cup. It is red.", 0),
        ("There is a cup. It is blue.", 1),
        ("There is a cup. Its color is blue.", 1),
        ("There is a red cup. It can be seen at the bottom.", 1),
        ("There is a cup. It is red. It is at the bottom.", 1),
        ("There is a cup and a bus. It is purple.", 0),  # of which object?
        ("There is a cup. It is next to a purple kettle.", 0),
        ("There is a cup. The wall is blue.", 0),
        ("This is a kitchen. It is blue.", 0),
    ],
)
def test_a_pronoun_continues_a_sentence_about_one_object(text, errors):
    assert count_caption(SCENE, text).attribute_errors == errors


@pytest.mark.parametrize(
    "text", ["", " ", "\n\n", "....", "cupcake busy", "\x00\ufffd café 漢字", "There is a red", "a" * 9999]
)
def test_text_without_objects_counts_nothing(text):
    count = count_caption(SCENE, text)
    assert (count.mentions, count.hallucinated, count.attribute_errors) == (0, 0, 0)


def test_a_truncated_sentence_still_counts():
    assert count_caption(SCENE, "This is a kitchen. There is a red cup").distinct_correct == 1


def test_summary_pools_rates_and_averages_counts():
    texts = ["A red cup. A kettle.", "A cup, a bus, a fish and a cup.", "Nothing to see."]
    figures = summarise([count_caption(SCENE, text) for text in texts])
    assert {name: figure["value"] for name, figure in figures.items()} == pytest.approx(
        {
            "response_hallucination": 1 / 2,
            "mention_hallucination": 1 / 6,
            "recall": 4 / 9,
            "precision": 4 / 5,
            "f1": 2 * 4 / (5 + 9),
            "mentions": 2.0,
            "distinct_mentions": 5 / 3,
            "duplicates": 1 / 3,
            "invented": 1 / 3,
            "misnamed": 0.0,
            "attribute_errors": 0.0,
            "words": 17 / 3,
        }
    )


def test_intervals_contain_their_value_narrow_with_more_captions_and_are_reproducible():
    scenes = [world.scene("development", index) for index in range(400)]
    counts = [count_caption(scene, world.true_caption(SCENE)) for scene in scenes]
    few, many = summarise(counts[:40]), summarise(counts)
    for figure in many.values():
        assert figure["low"] <= figure["value"] <= figure["high"]
    width = {
        name: figures["recall"]["high"] - figures["recall"]["low"] for name, figures in (("few", few), ("many", many))
    }
    assert width["many"] < width["few"]
    assert summarise(counts) == many


def test_empty_captions_have_rates_of_zero_and_no_captions_is_an_error():
    figures = summarise([count_caption(SCENE, "")])
    assert figures["response_hallucination"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    with pytest.raises(ConfigError, match="no captions"):
        summarise([])
