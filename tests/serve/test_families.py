"""Replicas of captioners of other families, from folders as ``jsfree publish`` writes them."""

import asyncio
import io

import pytest

from jsfree.config import Decoding, build
from jsfree.decoding import algorithm1
from jsfree.decoding.requests import Request
from jsfree.models.saving import publish_captioner
from serve.engines.ours import Engine
from serve.http.protocol import Question
from tests.support.families.builders import BUILDERS
from tests.support.families.checks import PROMPT, picture


@pytest.mark.parametrize("name", ["Qwen2.5-VL", pytest.param("LLaVA-NeXT", marks=pytest.mark.slow)])
def test_a_model_of_another_family_is_served(tmp_path, name):
    captioner = BUILDERS[name]()
    publish_captioner(captioner.model, captioner.processor, tmp_path)
    content = io.BytesIO()
    picture(0).save(content, "PNG")
    question = Question(image=content.getvalue(), prompt=PROMPT, temperature=0.0, top_p=1.0, max_tokens=8, seed=0)
    engine = Engine(build({"prompt": PROMPT}, where="test"), str(tmp_path))
    try:
        answer = asyncio.run(engine.caption(question))
    finally:
        engine.close()
    image = captioner.inputs(picture(0))
    expected = algorithm1.decode(
        captioner, Request("x", image, PROMPT, 0.0, 0, Decoding(temperature=0, max_new_tokens=8))
    )
    assert [choice.text for choice in answer.choices] == [expected.text]
    assert answer.prompt_tokens == len(captioner.prompt_ids(PROMPT, image))
