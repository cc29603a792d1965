"""The order of drawing, which must stay what it was in every run that has begun."""

from jsfree.run.keyed_order import TICKET_BYTES, ticket


def test_a_ticket_depends_on_seed_and_name_alone():
    assert ticket(0, "a.png").hex() == "9d9b4ae6e3bfbcd6475bea528940cb1d"
    assert len(ticket(7, "caf\u00e9")) == TICKET_BYTES
    assert len({ticket(0, "a"), ticket(1, "a"), ticket(0, "b")}) == 3
