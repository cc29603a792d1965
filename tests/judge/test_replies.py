import pytest

from jsfree.judge.replies import Reply, ReplyError, json_object, parse_body

BODY = (
    '{"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}], "model": "m",'
    ' "usage": {"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 3}}}'
)


def reply(text="", refusal=None, finish="stop"):
    return Reply(text, refusal, finish, "m", 1, 1)


def test_a_chat_completion_becomes_a_reply():
    assert parse_body(BODY) == Reply("hi", None, "stop", "m", 7, 2, 3)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (BODY[: len(BODY) // 2], "Invalid JSON"),
        ("<html>", "Invalid JSON"),
        ('{"choices": []}', "choices"),
        ('{"result": "x"}', "choices: Field required"),
        ('{"choices": [{"message": {"content": 5}}]}', r"choices\.0\.message\.content"),
    ],
)
def test_a_wrong_body_is_reported_with_its_key(body, message):
    with pytest.raises(ReplyError, match=message):
        parse_body(body)


@pytest.mark.parametrize(
    "text", ['{"a": 1}', 'Here it is:\n```json\n{"a": 1}\n```\nDone {or not}.', 'Sure! {"a": 1} Hope that helps.']
)
def test_the_object_of_a_reply_is_found_within_its_text(text):
    assert json_object(text) == {"a": 1}


@pytest.mark.parametrize("text", ["", "[1, 2]", '{"a": 1', "no", '{"a": ' * 10_000])
def test_a_text_without_an_object_is_an_error(text):
    with pytest.raises(ReplyError, match="no JSON object"):
        json_object(text)


def test_the_kind_of_error_follows_from_the_reply():
    assert reply(refusal="no").problem() == "refusal"
    assert reply(finish="content_filter").problem() == "refusal"
    assert reply("I'm sorry, but I can't assist with that.").problem() == "refusal"
    assert reply("I cannot see the picture.").problem() == "refusal"
    assert reply('{"a": [1, 2', finish="length").problem() == "truncated"
    assert reply("A sorry sight indeed.").problem() == "unparsable"
