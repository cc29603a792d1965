"""Errors carry problem and remedy, and survive pickling."""

import pickle

import pytest

from jsfree import errors


def kinds(base: type = errors.JsfreeError) -> list[type]:
    return [base, *(kind for child in base.__subclasses__() for kind in kinds(child))]


def test_the_message_states_the_problem_and_the_remedy():
    assert str(errors.ConfigError("a.yaml: no such key 'x'", "remove it")) == "a.yaml: no such key 'x'; remove it"
    assert str(errors.ConfigError("a.yaml: no such key 'x'")) == "a.yaml: no such key 'x'"


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_every_error_survives_pickling(kind):
    arguments = ("missing", "no file a.png", "restore it") if kind is errors.RowError else ("no file", "restore it")
    raised = kind(*arguments)
    loaded = pickle.loads(pickle.dumps(raised))
    assert type(loaded) is kind
    assert vars(loaded) == vars(raised)
    assert str(loaded) == str(raised)
