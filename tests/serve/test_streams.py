"""How often the parts of streams are sent."""

from serve.engines.streams import pause


def test_a_single_stream_is_sent_as_it_comes_and_many_are_sent_less_often():
    assert pause(1) == pause(8) == 0.025
    assert 0.025 < pause(16) < pause(20) == pause(500) == 0.06  # still 16 times a second
    assert 16 / pause(16) < 8 / pause(8) * 1.05  # twice the streams, about as many parts
