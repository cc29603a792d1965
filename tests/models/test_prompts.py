"""The tokens of the two prompts of Eq. 3; ``test_shapes.py`` compares their texts."""

TEXT = "Describe image in detail."


def test_the_prompts_differ_only_at_the_position_of_the_image(captioner):
    """Without the image, a blank and the first word become one token, as shown in ``docs/method.md``."""
    tokenizer, image = captioner.processor.tokenizer, captioner.processor.image_token
    with_image, without = (
        tokenizer.convert_ids_to_tokens(captioner.prompt_ids(TEXT, image)) for image in (captioner.blank, None)
    )
    assert [token for token in with_image if token != image][:7] == ["<s>", "USER", ":", "Ġ", "Ċ", "Des", "cribe"]
    assert without[:4] == ["<s>", "USER", ":", "ĠDescribe"]
    assert with_image[with_image.index("cribe") + 1 :] == without[4:]
