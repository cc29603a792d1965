"""Engines of a finished run's models, and a client of the application over them, shared by the tests of the API."""

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from serve.app import served_models
from serve.engines.ours import Engine
from serve.http import routes as api


@pytest.fixture(scope="session")
def engines(finished_run) -> Iterator[dict[str, Engine]]:
    config = finished_run.run.config
    engines = {model.role: Engine(config, model.ref) for model in served_models(finished_run.run)}
    yield engines
    for engine in engines.values():
        engine.close()


@pytest.fixture(scope="session")
def client(finished_run, engines) -> Iterator[TestClient]:
    config = finished_run.run.config
    app = api.create_app(served_models(finished_run.run), engines, config.serve, config.prompt)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client
