"""Records that are not valid pairs: the error names the row, the key and the remedy."""

import json

import pytest

from jsfree.config import Imported
from jsfree.exchange import UnusableRecord, importing, preferences
from tests.support.example_records import GOOD

ASKED_OTHERWISE = [{"from": "human", "value": "<image>\nWhere?"}, {"from": "gpt", "value": "A dog."}]


def read(tmp_path, name, *rows) -> list:
    path = tmp_path / "records.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return list(preferences(Imported(format=name, path=str(path))))


@pytest.mark.parametrize(
    ("name", "change", "kind", "told"),
    [
        ("trl", {"chosen": " "}, "empty_chosen", "the chosen (key 'chosen') is empty"),
        ("trl", {"prompt": "<image>"}, "empty_prompt", "the prompt (key 'prompt') is empty"),
        ("trl", {"images": ["a.png", "b.png"]}, "several_images", "key 'images' has 2 images"),
        ("trl", {"images": []}, "no_image", "key 'images' is an empty list"),
        ("trl", {"images": None}, "no_image", "the image (key 'image' or 'images') is empty"),
        ("trl", {"images": [3]}, "malformed", "the image (key 'image' or 'images') is int, expected one path"),
        ("trl", {"prompt": "<image><image>What?"}, "several_images", "key 'prompt' has 2 times '<image>'"),
        ("trl", {"rejected": "A dog in <image>."}, "image_marker", "the rejected (key 'rejected') holds '<image>'"),
        ("trl", {"chosen": ["A cat."]}, "malformed", "key 'chosen' is a list of str, expected messages of assistant"),
        ("ms-swift", {"rejected_response": None}, "malformed", "key 'rejected_response' is missing, expected a string"),
        ("ms-swift", {"images": None}, "no_image", "key 'images' is missing, expected a list of one image"),
        (
            "ms-swift",
            {"messages": [{"role": "system", "content": "Be brief."}, *GOOD["ms-swift"]["messages"]]},
            "malformed",
            "key 'messages' has the turns system, user, assistant ('role'), expected user, assistant",
        ),
        ("llama-factory", {"chosen": "A cat."}, "malformed", "key 'chosen' is str, expected a message of gpt"),
        ("llama-factory", {"rejected": {"from": "gpt", "value": 3}}, "malformed", "key 'rejected.value' is int"),
        ("rlaif-v", {"question": ""}, "empty_prompt", "the prompt (key 'question') is empty"),
        ("rlaif-v", {"image_path": None}, "no_image", "is empty; remove the row"),
        ("povid", {"rejected_conversations": ASKED_OTHERWISE}, "malformed", "ask different questions"),
        ("povid", {"conversations": GOOD["povid"]["conversations"] * 2}, "malformed", "turns human, gpt, human, gpt"),
    ],
)
def test_an_unusable_record_is_reported_with_its_row_and_key(tmp_path, name, change, kind, told):
    first, second, third = read(tmp_path, name, GOOD[name], {**GOOD[name], **change}, {**GOOD[name], "id": 3, "idx": 3})
    assert isinstance(second, UnusableRecord)
    assert second.error.kind == kind
    assert str(second.error).startswith(f"{tmp_path}/records.jsonl, row 1: ")
    assert told in str(second.error)
    assert second.id == "records.jsonl:1"
    assert [each.chosen for each in (first, third)] == ["A cat."] * 2


def test_invalid_json_and_a_value_that_is_not_an_object_are_reported(tmp_path):
    _, broken, number = read(tmp_path, "trl", GOOD["trl"], '{"prompt": ', "3")
    assert "row 1: is not valid JSON" in str(broken.error)
    assert "row 2: is int, expected keys and values" in str(number.error)


def test_a_duplicate_id_is_an_error_unless_the_prompts_differ(tmp_path):
    other = {**GOOD["rlaif-v"], "question": "Where?"}
    first, again, asked = read(tmp_path, "rlaif-v", GOOD["rlaif-v"], {**GOOD["rlaif-v"], "chosen": "A cow."}, other)
    assert (first.chosen, asked.prompt) == ("A cat.", "Where?")
    assert again.error.kind == "duplicate_id"
    assert f"is '7', as in {tmp_path}/records.jsonl, row 0; make it unique" in str(again.error)


def test_more_image_bytes_than_a_run_can_hold_are_refused(embedded, tmp_path, monkeypatch):
    from jsfree.errors import SourceError
    from jsfree.exchange import export

    export(embedded, "trl", str(tmp_path / "out"))
    monkeypatch.setattr(importing, "MAX_EMBEDDED_BYTES", 10_000)
    with pytest.raises(SourceError, match="GB of images, too much for the run's tables; put the images into files"):
        list(preferences(Imported(format="trl", path=str(tmp_path / "out"))))
