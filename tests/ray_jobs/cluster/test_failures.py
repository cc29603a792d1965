"""A worker's error reaches the driver intact, through the wrappers of Ray's tasks, Ray Data and Ray Train."""

import json
import sys
from functools import partial

import pytest
import ray

from jsfree.errors import CodeError, JsfreeError, RowError, StageError, StorageError
from jsfree.run import code_version
from ray_jobs.cluster.failures import stage_error, unwrap_errors
from ray_jobs.cluster.same_code import checked_actor, checked_function

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

OURS = StorageError("s3://bucket/x: cannot be read; [it said: no]", "check: the path; the key")


def fail(error: Exception) -> None:
    raise error


def building(function):
    """A callable for ``map_batches``."""
    return lambda _: function()


def by_task(function) -> None:
    ray.get(ray.remote(num_cpus=0)(lambda: function()).remote())


def by_ray_data(function) -> None:
    compute = ray.data.ActorPoolStrategy(size=1)
    actor = checked_actor(partial(building, function), "test")
    ray.data.range(1).map_batches(actor, batch_size=1, compute=compute, num_cpus=0.1).take_all()


def by_ray_train(function, folder) -> None:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    scaling = ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.1})
    TorchTrainer(function, scaling_config=scaling, run_config=RunConfig(storage_path=str(folder))).fit()


def test_an_error_is_raised_on_the_driver_as_in_the_worker(ray_session, tmp_path):
    for way in (by_task, by_ray_data, partial(by_ray_train, folder=tmp_path)):
        with pytest.raises(JsfreeError) as raised, unwrap_errors("test"):
            way(partial(fail, OURS))
        assert (type(raised.value), raised.value.problem, raised.value.remedy) == (
            StorageError,
            OURS.problem,
            OURS.remedy,
        )


@pytest.mark.parametrize("error", [ValueError("first\nsecond"), KeyError("k"), OSError(28, "No space left on device")])
def test_any_other_error_is_reported_with_its_type_and_first_line(ray_session, error):
    expected = f"stage 'test' failed: {type(error).__name__}: {str(error).splitlines()[0]}"
    for way in (by_task, by_ray_data):
        with pytest.raises(StageError) as raised, unwrap_errors("test"):
            way(partial(fail, error))
        assert raised.value.problem == expected
        assert "--debug" in raised.value.remedy


def test_a_worker_with_different_code_is_a_code_error_for_tasks_and_actors(ray_session, tmp_path, monkeypatch):
    monkeypatch.setattr(code_version, "installed", lambda name: "0.0.1")
    checked = checked_function(partial(json.dumps, 1))
    actor = checked_actor(partial(building, partial(json.dumps, 1)), "test")
    monkeypatch.undo()
    compute = ray.data.ActorPoolStrategy(size=1)
    ways = (
        partial(by_task, checked),
        ray.data.range(1).map_batches(actor, batch_size=1, compute=compute, num_cpus=0.1).take_all,
        partial(by_ray_train, checked, tmp_path),
    )
    for way in ways:
        with pytest.raises(CodeError, match=r"has other code .*torch .* instead of 0\.0\.1"), unwrap_errors("test"):
            way()


def test_a_worker_with_code_too_old_to_compare_is_a_code_error(ray_session):
    checked = checked_function(partial(json.dumps, 1))

    def without_code_version() -> str:
        sys.modules["jsfree.run"] = None
        return checked()

    with pytest.raises(CodeError, match=r"has other code .*jsfree\.run.*; install the driver's"), unwrap_errors("test"):
        by_task(without_code_version)


def test_a_row_error_keeps_its_kind():
    error = RowError("missing", "no image", "add it")
    assert stage_error("score", error) is error
