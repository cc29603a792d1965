"""The order of drawing, which must stay what it was in every run that has begun."""

from jsfree.run.keyed_order import KEY_BYTES, order_key


def test_a_order_key_depends_on_seed_and_name_alone():
    assert order_key(0, "a.png").hex() == "9d9b4ae6e3bfbcd6475bea528940cb1d"
    assert len(order_key(7, "caf\u00e9")) == KEY_BYTES
    assert len({order_key(0, "a"), order_key(1, "a"), order_key(0, "b")}) == 3
