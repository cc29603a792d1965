import hashlib

import pytest

from jsfree.errors import ConfigError
from jsfree.judge.prompts import Prompt, load_prompt


def test_values_are_inserted_verbatim():
    prompt = Prompt("p", 1, "Caption: $caption. Cost: $$5.")
    assert prompt.fill(caption="a $dog {x} %s") == "Caption: a $dog {x} %s. Cost: $5."
    assert prompt.as_json()["sha256"] == hashlib.sha256(b"Caption: $caption. Cost: $$5.").hexdigest()


def test_missing_and_surplus_values_are_errors():
    with pytest.raises(ConfigError, match=r"the prompt p takes \['caption'\], not \['text'\]"):
        Prompt("p", 1, "$caption").fill(text="x")


def test_a_missing_prompt_is_named():
    with pytest.raises(ConfigError, match=r"jsfree\.judge has no prompt 'nothing' of version 3"):
        load_prompt("jsfree.judge", "nothing", 3)
