"""Progress of a training: step log, TensorBoard, console line and warning."""

import pytest
from tensorboardX.proto.event_pb2 import Event

from jsfree.dpo.step_log import STEPS, TENSORBOARD, ChosenLogpWarning, step_log, summary_line
from jsfree.run.folder import Folder


def step(number: int, **figures: float) -> dict[str, float]:
    base = {"step": number, "epoch": 0, "loss": 0.5, "accuracy": 0.75, "margin": 0.25, "chosen_change": 0.0}
    return {**base, "tokens_per_second": 1234.0, **figures}


def scalars(folder: Folder) -> dict[tuple[str, int], float]:
    """All scalars in TensorBoard's files."""
    found = {}
    for name in folder.names():
        content, at = folder.read(name), 0
        while at < len(content):
            length = int.from_bytes(content[at : at + 8], "little")
            event = Event.FromString(content[at + 12 : at + 12 + length])
            found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
            at += 12 + length + 4
    return found


@pytest.mark.parametrize("uri", ["{path}/train", "memory://train"])
def test_steps_are_written_to_the_log_and_to_tensorboard(tmp_path, uri):
    folder = Folder(uri.format(path=tmp_path))
    history = []
    with step_log(folder) as publish:
        for number in range(3):
            history.append(step(number, **({"validation_loss": 0.25} if number == 1 else {})))
            publish(history, 3)
    assert folder.read_json(STEPS) == history
    found = scalars(folder / TENSORBOARD)
    assert {tag for tag, _ in found} == {
        *("train/loss", "train/accuracy", "train/margin", "train/chosen_change", "train/tokens_per_second"),
        "validation/loss",
    }
    assert found["train/loss", 2] == 0.5
    assert [at for tag, at in found if tag == "validation/loss"] == [1]


def test_a_resumed_training_repeats_all_steps_to_tensorboard(tmp_path):
    folder = Folder(str(tmp_path))
    with step_log(folder) as publish:
        publish([step(0, loss=0.1), step(1, loss=0.2)], 5)
    assert {at for _, at in scalars(folder / TENSORBOARD)} == {0, 1}


def test_the_last_step_is_always_written(tmp_path):
    folder = Folder(str(tmp_path))
    with step_log(folder) as publish:
        publish([step(0)], 10)
        publish([step(0), step(1)], 10)
        assert len(folder.read_json(STEPS)) == 1  # at most once a second
        publish([step(0), step(1), step(2)], 3)
        assert len(folder.read_json(STEPS)) == 3


def test_the_summary_line_shows_the_last_step_and_the_last_validation():
    assert summary_line([step(0)]) == "loss 0.500  accuracy 0.75  margin +0.25  1,234 tokens/s"
    assert "held out 0.600" in summary_line([step(0, validation_loss=0.6), step(1)])


def test_the_warning_is_given_once_and_names_the_settings():
    said = []
    alarm = ChosenLogpWarning(0.5, said.append)
    falling = [step(number, chosen_change=-0.2 * number) for number in range(8)]
    for end in range(1, 9):
        alarm(falling[:end])
    assert len(said) == 1
    assert said[0] == (
        "  warning: at step 5 the chosen captions have lost 0.60 of log-probability a token (train.chosen_alarm: 0.5);"
        " raise train.sft_weight or lower train.learning_rate"
    )


def test_one_bad_step_or_no_threshold_gives_no_warning():
    said = []
    once = [step(number, chosen_change=-0.9 if number == 3 else 0.0) for number in range(6)]
    ChosenLogpWarning(0.5, said.append)(once)
    ChosenLogpWarning(None, said.append)([step(number, chosen_change=-5.0) for number in range(6)])
    assert said == []
