"""The three workloads of the project and the memory layouts that they give."""

from dataclasses import replace

import pytest

from jsfree.config import Contrast, Generate
from jsfree.decoding.memory import KvSize
from jsfree.decoding.mixing import MIXINGS, Vcd
from jsfree.decoding.workload import Layout, Requirement, Workload

UNLIMITED = float("inf")


def layout(workload: Workload) -> Layout:
    return workload.layout(KvSize(token_bytes=10, group=1), Requirement(100, 20, 32), UNLIMITED)


@pytest.mark.parametrize(("winner", "second_rows"), [("zero", 4), ("drawn", 8)])
def test_pairs_have_one_text_prefix_and_a_second_path_for_each_caption_that_mixes(winner, second_rows):
    workload = Workload.for_pairs(Generate(slots=8, ratios={"winner": winner}, mixing="logit"))
    assert workload.mixing == MIXINGS["logit"]
    found = layout(workload)
    assert (found.slots, found.second_rows, found.images, found.cache.text_prefixes) == (8, second_rows, 7, 1)
    assert found.bytes == 10 * ((8 + second_rows) * 32 + 7 * 100 + 20)


def test_captions_have_an_image_each_and_no_second_path():
    found = layout(Workload.for_captions(8))
    assert (found.second_rows, found.images, found.cache.readers, found.cache.text_prefixes) == (0, 8, 1, 0)


def test_a_contrastive_baseline_may_hold_every_image_twice():
    workload = Workload.for_captions(8, Contrast(kind="vcd"))
    assert isinstance(workload.mixing, Vcd)
    found = layout(workload)
    assert (found.second_rows, found.cache.image_rows, found.cache.image_prefixes) == (8, 16, 16)
    without_image = layout(Workload.for_captions(8, Contrast(kind="vcd", noise_step=None)))
    assert (without_image.cache.image_prefixes, without_image.cache.text_prefixes) == (8, 1)


def test_served_captions_share_an_image_and_have_any_prompt():
    found = layout(Workload.for_serving(8))
    assert (found.second_rows, found.images, found.cache.readers) == (0, 8, 4)


def test_fewer_slots_fit_into_less_memory():
    workload, size, requirement = Workload.for_captions(8), KvSize(10, 1), Requirement(100, 20, 32)
    half = replace(workload, slots=4).layout(size, requirement, UNLIMITED)
    assert workload.layout(size, requirement, half.bytes) == half
