"""AMBER: the order of the rules, pooled metrics, yes/no answers, and what is declared without libraries."""

import json

import pytest

from jsfree.errors import ConfigError, SourceError
from jsfree.evaluation.benchmarks.amber import Amber, check_nouns, printed_scores, targets
from jsfree.evaluation.benchmarks.amber_nouns import load_similarity, rule_nouns
from jsfree.evaluation.benchmarks.base import Answer
from jsfree.evaluation.benchmarks.measuring import CountTable, measure

RELATIONS = {
    "dog": ["puppy", "animal"],
    "tree": ["plant", "oak"],
    "car": ["vehicle", "truck"],
    "sky": ["cloud"],
    "cat": ["kitten", "animal"],
    "light": [],
}
TRUTH = targets(["dog", "tree"], RELATIONS)
LIKELY = targets(["car", "cat"], RELATIONS)


def similar(*pairs):
    return lambda one, other: 0.9 if (one, other) in pairs else 1.0 if one == other else 0.8


def check(*nouns, similarity=None):
    checked = check_nouns(nouns, TRUTH, LIKELY, similarity)
    return list(checked.hallucinated), set(checked.covered), set(checked.expected)


def test_the_rules_in_their_order():
    assert check("light") == ([], set(), set())  # a safe word
    assert check("puppy", "dog", "oak") == ([], {0, 1}, set())
    assert check("animal") == ([], {0}, set())  # related to a true object and to a likely hallucination
    assert check("truck") == (["truck"], set(), {0})
    assert check("cat", "kitten", "cat") == (["cat", "kitten", "cat"], set(), {1})
    assert check("cloud") == (["cloud"], set(), set())


def test_similarity_marks_likely_hallucinations_and_rescues():
    assert check("cloud", similarity=similar(("cloud", "kitten"))) == (["cloud"], set(), {1})
    assert check("cloud", similarity=similar(("cloud", "oak"))) == ([], {1}, set())
    both = similar(("cloud", "truck"), ("cloud", "tree"))
    assert check("cloud", similarity=both) == ([], {1}, {0})
    assert check("cloud", similarity=similar()) == (["cloud"], set(), set())  # .8 is not above .8
    # A likely hallucination that is similar to an object of the image counts as right, and still as likely.
    assert check("truck", similarity=similar(("truck", "dog"))) == ([], {0}, {0})


def test_nouns_are_words_of_the_vocabulary_in_lower_case():
    nouns = rule_nouns({"dog", "tree", "bus", "fire hydrant"})
    kept = [
        noun for noun in nouns("Two dogs and dog's trees. Trees near buses; a Dog, tree-lined.") if noun in RELATIONS
    ]
    assert kept == ["dog", "dog", "tree"]


@pytest.fixture
def data(tmp_path):
    annotations = [
        {"id": 1, "type": "generative", "truth": ["dog", "tree"], "hallu": ["car"]},
        {"id": 2, "type": "generative", "truth": ["sky"], "hallu": ["cat", "car"]},
        {"id": 3, "type": "discriminative-hallucination", "truth": "no"},
        {"id": 4, "type": "discriminative-attribute-state", "truth": "yes"},
        {"id": 5, "type": "discriminative-relation", "truth": "no"},
    ]
    query = [{"id": each["id"], "image": f"AMBER_{each['id'] % 3}.jpg", "query": "Describe."} for each in annotations]
    (tmp_path / "query").mkdir()
    (tmp_path / "query" / "query_all.json").write_text(json.dumps(query), encoding="utf-8")
    (tmp_path / "annotations.json").write_text(json.dumps(annotations), encoding="utf-8")
    (tmp_path / "relation.json").write_text(json.dumps(RELATIONS), encoding="utf-8")
    return tmp_path


ANSWERS = [
    Answer("1", "AMBER_1.jpg", "a puppy under clouds and a truck with lights"),
    Answer("2", "AMBER_2.jpg", "some clouds and nothing else"),
    Answer("3", "AMBER_0.jpg", "No"),
    Answer("4", "AMBER_1.jpg", "Yes."),
    Answer("5", "AMBER_2.jpg", "Yes"),
]


def values(suite, measured):
    return {name: each.value for name, each in measure(CountTable.of(measured.rows), suite.measures).items()}


def test_metrics_are_pooled_over_answers(data):
    suite = Amber()
    measured = suite.score(data, ANSWERS)
    found = values(suite, measured)
    assert found["CHAIR"] == pytest.approx(2 / 5)  # cloud, truck of puppy, cloud, truck, light, cloud
    assert found["Cover"] == pytest.approx(2 / 3)
    assert found["Hal"] == pytest.approx(1 / 2)
    assert found["Cog"] == pytest.approx(1 / 3)
    assert found["accuracy"] == pytest.approx(1 / 3)  # "Yes." is not exactly "Yes"
    assert (found["precision"], found["recall"]) == (1.0, 0.5)
    assert found["f1"] == pytest.approx(2 / 3)
    assert {row.group for row in measured.rows} == {
        "generative",
        "discriminative-hallucination",
        "discriminative-attribute-state",
        "discriminative-relation",
    }


def test_replies_of_models_are_shortened_to_what_the_answer_file_has(data):
    replies = [Answer("1", "a", "Yes, a dog."), *(Answer("4", "b", text) for text in ("Yes.", " no, not", "Yesterday"))]
    shortened = Amber().as_answers(data, replies)
    assert [answer.text for answer in shortened] == ["Yes, a dog.", "Yes", "No", "Yesterday"]


def test_the_printed_scores_have_the_originals_offsets_and_rounding(data):
    suite = Amber()
    sums = CountTable.of(suite.score(data, ANSWERS).rows).sums()
    printed = printed_scores(sums)
    assert printed["CHAIR"] == round(2 / 5.001 * 100, 1)
    assert printed["recall"] == round(1 / 2.001 * 100, 1)
    precision, recall = printed["precision"] / 100, printed["recall"] / 100
    assert printed["f1"] == round(2 * precision * recall / (precision + recall + 0.0001) * 100, 1)


def test_without_vectors_the_result_says_that_similarities_were_left_out(data):
    notes = Amber().score(data, ANSWERS).notes
    assert any("not compared by similarity" in note for note in notes)
    assert any("NLTK" in note for note in notes)


def test_vectors_of_a_file_are_used_and_declared(data):
    path = data / "vectors.txt"
    path.write_text("cloud 1 0.1\ntree 1 0\ntruck 0 1\n", encoding="utf-8")
    suite = Amber(vectors=str(path))
    measured = suite.score(data, ANSWERS)
    assert values(suite, measured)["CHAIR"] == pytest.approx(1 / 5)  # a cloud is similar to a tree
    assert any(f"those of {path}" in note for note in measured.notes)
    assert suite.protocol["vectors"] == str(path)
    path.write_text("cloud 1 x\n", encoding="utf-8")
    with pytest.raises(SourceError, match=r"vectors\.txt, line 1"):
        load_similarity(str(path))


def test_missing_libraries_are_named_with_the_command_that_installs_them(data):
    with pytest.raises(ConfigError, match="python -m spacy download en_core_web_lg"):
        Amber(vectors="en_core_web_lg").score(data, ANSWERS)
    with pytest.raises(ConfigError, match="pip install nltk"):
        Amber(nouns="nltk").score(data, ANSWERS)


def test_a_task_uses_its_items_only(data):
    assert [question.question_id for question in Amber("generative").questions(data)] == ["1", "2"]
    assert [question.question_id for question in Amber("discriminative").questions(data)] == ["3", "4", "5"]
    measured = Amber("discriminative").score(data, ANSWERS)
    assert [error["sample_id"] for error in measured.errors] == ["1", "2"]
    assert measured.notes == []


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("annotations.json", '"hallu": ["car"]', '"other": 1', r"annotations\.json, record 0: 'hallu' is missing"),
        ("annotations.json", '"truth": ["sky"]', '"truth": ["sun"]', r"record 1: 'sun' is not in relation\.json"),
        ("relation.json", '["cloud"]', '"cloud"', r"relation\.json: 'sky' is not a list"),
        ("annotations.json", "[", "", r"annotations\.json, line 1 is not valid JSON"),
    ],
)
def test_wrong_files_are_reported_with_record_and_key(data, file, old, new, message):
    path = data / file
    path.write_text(path.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    with pytest.raises(SourceError, match=message):
        Amber().score(data, ANSWERS)
