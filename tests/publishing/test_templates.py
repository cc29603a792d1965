"""The published chat template writes the start token, and no program that follows the conventions adds a second one."""

import pytest
from transformers import AutoProcessor

from jsfree.models.loading import load_captioner
from jsfree.models.prompts import start_token_template
from jsfree.models.saving import publish_captioner
from tests.support.families.builders import BUILDERS
from tests.support.families.checks import PROMPT, picture


@pytest.fixture(params=["MiniWorld", "LLaVA-NeXT", "Qwen2.5-VL"])
def published(request, captioner, tmp_path):
    """A captioner, and the processor of its published folder."""
    own = captioner if request.param == "MiniWorld" else BUILDERS[request.param]()
    publish_captioner(own.model, own.processor, tmp_path)
    return own, tmp_path


def test_the_tokens_of_a_published_template_are_those_of_training(published):
    captioner, folder = published
    processor, text = AutoProcessor.from_pretrained(folder), {"type": "text", "text": PROMPT}
    image = captioner.inputs(picture(0))
    turn = [{"role": "user", "content": [{"type": "image", "image": picture(0)}, text]}]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
    assert processor.apply_chat_template(turn, **options)["input_ids"][0] == captioner.prompt_ids(PROMPT, image)
    # vLLM renders the conversation and tokenizes it without special tokens.
    rendered = processor.apply_chat_template([{"role": "user", "content": [text]}], add_generation_prompt=True)
    ids = processor.tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert ids == captioner.prompt_ids(PROMPT, None)
    assert ids.count(processor.tokenizer.bos_token_id) == (processor.tokenizer.bos_token is not None)


def test_a_published_captioner_reads_its_prompts_as_before(published):
    captioner, folder = published
    again = load_captioner(str(folder))
    for image in (None, captioner.inputs(picture(0))):
        assert again.prompt_ids(PROMPT, image) == captioner.prompt_ids(PROMPT, image)
    assert start_token_template(again.processor) == again.processor.chat_template
