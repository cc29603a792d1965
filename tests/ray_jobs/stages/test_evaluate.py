"""Captions of runs made by earlier versions are still those of their mode."""

import pytest

from jsfree.config import Contrast, Mode, Views
from ray_jobs.stages.evaluate import decoding_key

STORED = '{"temperature":0.0,"top_p":1.0,"top_k":0,"max_new_tokens":96,"stop":[],"contrast":null}'


def test_the_key_of_a_mode_is_that_of_the_first_version():
    assert decoding_key(Mode(temperature=0)) == STORED


@pytest.mark.parametrize("changed", [{"views": Views(count=3)}, {"contrast": Contrast(kind="vcd")}, {"top_k": 5}])
def test_every_setting_changes_the_key(changed):
    assert decoding_key(Mode(temperature=0, **changed)) != STORED
