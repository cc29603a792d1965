"""Chat templates of different families: thinking, start tokens, and what stays of an image."""

import pytest

from jsfree.errors import ConfigError, ModelError
from jsfree.models.prompts import unconditional_prompt
from tests.support.families.builders import BUILDERS
from tests.support.families.checks import PROMPT, picture
from tests.support.families.templates import chatml

SWITCH = (
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}"
)


def test_thinking_is_switched_off_where_the_template_has_a_switch():
    processor = BUILDERS["LLaVA (SigLIP)"]().processor
    processor.chat_template = chatml("<image>\n") + SWITCH
    assert unconditional_prompt(processor, PROMPT).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_a_template_that_always_thinks_is_refused():
    processor = BUILDERS["LLaVA (SigLIP)"]().processor
    processor.chat_template = chatml("<image>\n") + "<think>\n"
    with pytest.raises(ModelError, match=r"begins a reasoning block .* use a checkpoint that answers directly"):
        unconditional_prompt(processor, PROMPT)


def test_a_template_that_writes_the_start_token_gets_no_second_one():
    captioner = BUILDERS["Gemma 3"]()
    begin = captioner.processor.tokenizer.bos_token_id
    for image in (captioner.inputs(picture(0)), None):
        ids = captioner.prompt_ids(PROMPT, image)
        assert ids[0] == begin
        assert ids.count(begin) == 1


@pytest.mark.parametrize("name", ["Qwen2.5-VL", "Gemma 3", "Idefics3", "InternVL3"])
def test_nothing_that_a_template_writes_around_an_image_stays(name):
    captioner = BUILDERS[name]()
    assert not set(captioner.prompt_ids(PROMPT, None)) & captioner.vision_ids


@pytest.mark.parametrize(("name", "token"), [("Qwen2.5-VL", "<|vision_start|>"), ("Gemma 3", "<end_of_image>")])
def test_a_prompt_with_a_token_of_vision_is_refused(name, token):
    captioner = BUILDERS[name]()
    with pytest.raises(ConfigError, match="contains the image token"):
        captioner.prompt_ids(f"What is {token}?", captioner.inputs(picture(0)))
