"""The sampling order, which must not change for runs that have begun."""

from jsfree.run.keyed_order import KEY_BYTES, order_key


def test_an_order_key_depends_only_on_seed_and_name():
    assert order_key(0, "a.png").hex() == "9d9b4ae6e3bfbcd6475bea528940cb1d"
    assert len(order_key(7, "caf\u00e9")) == KEY_BYTES
    assert len({order_key(0, "a"), order_key(1, "a"), order_key(0, "b")}) == 3
