"""CHAIR: parity with the original on the reference cases, and scores of small files worked out by hand."""

import json

import pytest

from jsfree.errors import SourceError
from jsfree.evaluation.benchmarks import vocabulary
from jsfree.evaluation.benchmarks.answers import read_answers
from jsfree.evaluation.benchmarks.base import Answer
from jsfree.evaluation.benchmarks.chair import STACKS, Chair
from jsfree.evaluation.benchmarks.results import Result
from tests.support.coco_files import write_coco
from tests.support.reference_cases import reference


def result(suite, answers, measured):
    return Result(suite, "x", answers, measured, {}, len(answers), resamples=10).as_json()


@pytest.fixture(scope="module")
def cases():
    return json.loads((reference("chair") / "cases.json").read_text(encoding="utf-8"))


def scored(stack, name="captions.jsonl"):
    folder = reference("chair")
    suite = Chair(vocabulary.load(folder / "synonyms.txt"), stack)
    answers = read_answers(folder / name)
    return suite, answers, suite.score(folder / "annotations", answers)


@pytest.mark.parametrize("name", ["captions.jsonl", "captions_imgToEval.json"])
def test_the_original_stack_equals_the_original_code_on_every_case(cases, name):
    suite, answers, measured = scored("original", name)
    written = suite.details_document(result(suite, answers, measured))["sentences"]
    for case, sentence in zip(cases["cases"], written, strict=True):
        assert sentence["image_id"] == case["image_id"]
        assert sentence["mscoco_generated_words"] == case["objects"]
        assert sentence["mscoco_hallucinated_words"] == case["hallucinated"]
        assert sentence["hallucination_idxs"] == case["hallucinated_token_index"]
        assert sentence["mscoco_gt_words"] == sorted(case["gt_objects"])
        assert len(sentence["words"]) == case["n_tokens"]
        assert sentence["metrics"] == pytest.approx({key: case[key] for key in ("CHAIRs", "CHAIRi", "recall")})


@pytest.mark.parametrize("stack", STACKS)
def test_every_stack_finds_the_objects_of_robust_cases(cases, stack):
    _, _, measured = scored(stack)
    for case, sentence in zip(cases["cases"], measured.details, strict=True):
        if case["robust"]:
            assert sentence["mscoco_generated_words"] == case["objects"], case["caption"]
            assert sentence["mscoco_gt_words"] == sorted(case["gt_objects"])


def test_totals_equal_those_of_the_original_code(cases):
    folder = reference("chair")
    suite = Chair(vocabulary.load(folder / "synonyms.txt"))
    every = read_answers(folder / "captions.jsonl")
    for expected in cases["meta"]["aggregates"].values():
        answers = [every[number] for number in expected["case_ids"]]
        found = result(suite, answers, suite.score(folder / "annotations", answers))
        values = {name: found["metrics"][name]["value"] for name in ("CHAIRs", "CHAIRi", "recall", "tokens")}
        assert values == pytest.approx(
            {
                "CHAIRs": expected["CHAIRs"],
                "CHAIRi": expected["CHAIRi"],
                "recall": expected["recall"],
                "tokens": expected["avg_len_tokens"],
            }
        )
        assert found["sums"]["mentions"] == expected["n_mentions"]
        assert found["counts"]["answers"] == expected["n_captions"]


@pytest.fixture
def data(tmp_path):
    return write_coco(
        tmp_path,
        {1: ["dog", "person"], 2: ["bus"], 3: []},
        {1: ["A man with a dog and a kite."], 2: ["A big red bus."], 3: []},
    )


def answers(*pairs):
    return [Answer(str(number), str(image), text) for number, (image, text) in enumerate(pairs)]


def test_objects_of_reference_captions_are_in_the_image(data):
    suite = Chair(vocabulary.built_in())
    said = answers((1, "A woman flies a kite next to two cats. The cats sleep."), (3, "Nothing."))
    found = result(suite, said, suite.score(data, said))
    assert found["details"][0]["mscoco_gt_words"] == ["dog", "kite", "person"]
    assert found["details"][0]["mscoco_hallucinated_words"] == [["cat", "cat"], ["cat", "cat"]]
    metrics = {name: metric["value"] for name, metric in found["metrics"].items()}
    assert metrics["CHAIRs"] == pytest.approx(1 / 2)  # the caption without objects counts
    assert metrics["CHAIRi"] == pytest.approx(2 / 4)
    assert metrics["recall"] == pytest.approx(2 / 3)
    assert metrics["words"] == pytest.approx(13 / 2)


def test_stacks_differ_as_published(data):
    said = answers((2, "A bus with men and vases. They are skiing."))
    named = {stack: Chair(vocabulary.built_in(), stack).score(data, said).details[0] for stack in STACKS}
    assert named["original"]["mscoco_generated_words"] == ["person", "vase"]
    assert named["lemmas"]["mscoco_generated_words"] == ["bus", "skis"]


def test_captions_without_any_object_have_no_rate(data):
    suite = Chair(vocabulary.built_in())
    said = answers((1, "It is nice."), (2, "It is nice."))
    assert result(suite, said, suite.score(data, said))["metrics"]["CHAIRi"] == {
        "value": None,
        "low": None,
        "high": None,
    }


def test_the_protocol_says_what_was_done(data):
    protocol = Chair(vocabulary.built_in(), "lemmas").protocol
    assert protocol["stack"] == "lemmas"
    assert protocol["vocabulary"] == "built-in"
    assert (
        protocol["vocabulary_hash"] != Chair(vocabulary.Vocabulary("x", {"dog": ("dog",)})).protocol["vocabulary_hash"]
    )


def test_wrong_data_are_named(data, tmp_path):
    suite = Chair(vocabulary.built_in())
    with pytest.raises(SourceError, match=r"line 7: image 99 is in no annotation file"):
        suite.score(data, [Answer("a", "99", "A dog.", where="answers.jsonl, line 7")])
    with pytest.raises(SourceError, match=r"has no instances_val2014.json"):
        suite.score(tmp_path / "absent", answers((1, "A dog.")))
    content = json.loads((data / "captions_val2014.json").read_text(encoding="utf-8"))
    del content["annotations"][1]["image_id"]
    (data / "captions_val2014.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(SourceError, match=r"captions_val2014.json, annotations\[1\] has no 'image_id'"):
        suite.score(data, answers((1, "A dog.")))


def test_an_annotated_category_must_be_in_the_vocabulary(tmp_path):
    data = write_coco(tmp_path, {1: ["dragon"]}, {1: []})
    with pytest.raises(SourceError, match=r"category 'dragon', but the built-in vocabulary does not"):
        Chair(vocabulary.built_in()).score(data, answers((1, "A dog.")))


def test_the_vocabulary_is_checked_before_images_are_captioned(tmp_path):
    data = write_coco(tmp_path, {1: ["dragon"]}, {1: []})
    (data / "val2014").mkdir()
    (data / "val2014" / "COCO_val2014_000000000001.jpg").write_bytes(b"an image")
    with pytest.raises(SourceError, match=r"category 'dragon'.*--vocabulary"):
        Chair(vocabulary.built_in()).questions(data)
