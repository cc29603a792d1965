"""What a sample of images tells about all of them."""

import math

import pytest

from jsfree.preflight.data import lower_bound


@pytest.mark.parametrize(("broken", "looked_at"), [(1, 64), (16, 64), (63, 64), (2, 5)])
def test_the_lower_bound_is_the_share_at_which_so_many_are_just_unlikely(broken, looked_at):
    bound, seen = lower_bound(broken, looked_at), broken / looked_at
    assert 0 < bound < seen
    assert (seen - bound) / math.sqrt(bound * (1 - bound) / looked_at) == pytest.approx(1.645)


def test_no_broken_image_bounds_nothing():
    assert lower_bound(0, 64) == 0
