"""Where the tokens of the two prompts of Eq. 3 differ; their texts are compared in ``test_shapes.py``."""

TEXT = "Describe image in detail."


def test_tokens_differ_only_where_the_image_stood(captioner):
    """As ``docs/method.md`` shows it: a blank and the first word become one token."""
    tokenizer, image = captioner.processor.tokenizer, captioner.processor.image_token
    with_image, without = (
        tokenizer.convert_ids_to_tokens(captioner.prompt_ids(TEXT, image=shown)) for shown in (True, False)
    )
    assert [token for token in with_image if token != image][:7] == ["<s>", "USER", ":", "Ġ", "Ċ", "De", "scribe"]
    assert without[:4] == ["<s>", "USER", ":", "ĠDescribe"]
    assert with_image[with_image.index("scribe") + 1 :] == without[4:]
