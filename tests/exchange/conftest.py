"""A finished run with MiniWorld's images inside its tables, and one whose images are files."""

import hashlib
from pathlib import Path

import pytest

from jsfree import schemas
from jsfree.run.run import Run
from tests.support import example_run


@pytest.fixture(scope="session")
def embedded(tmp_path_factory) -> Run:
    return example_run.build(tmp_path_factory.mktemp("embedded") / "run", errors=False)


@pytest.fixture(scope="session")
def verified(tmp_path_factory) -> Run:
    """A run whose pairs are formed from verified sentences."""
    folder = tmp_path_factory.mktemp("verified") / "run"
    return example_run.build(folder, errors=False, **example_run.COVERAGE)


@pytest.fixture(scope="session")
def referring(embedded, tmp_path_factory) -> Run:
    """A run with the same selected pairs whose images are files."""
    folder = tmp_path_factory.mktemp("referring")
    run = Run.open(embedded.config.model_copy(update={"run": str(folder / "run")}))
    rows = selected(embedded)
    for row in rows:
        path = folder / f"{hashlib.sha256(row['image']['bytes']).hexdigest()}.png"
        path.write_bytes(row["image"]["bytes"])
        row["image"] = {**row["image"], "uri": str(path), "bytes": None}
    example_run.write_rows(run, 1, "selected", rows, schemas.SELECTED)
    return run


def selected(run: Run) -> list[dict]:
    """The rows that a run's first round trains on."""
    return run.stage(1, "selected").read_shards(schemas.SELECTED).to_pylist()


@pytest.fixture(scope="session")
def rows_of():
    return selected


def sha256_of(image: dict) -> str:
    content = image["bytes"] if image["bytes"] is not None else Path(image["uri"]).read_bytes()
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(scope="session")
def said():
    """The parts of a pair that a round trip must preserve: prompt, both captions and the image's content."""

    def of(pairs) -> list[tuple[str, str, str, str]]:
        return [(pair.prompt, pair.chosen, pair.rejected, sha256_of(pair.image)) for pair in pairs]

    return of


@pytest.fixture(scope="session")
def expected(embedded) -> list[tuple[str, str, str, str]]:
    return [
        (row["prompt"], row["chosen"]["text"], row["rejected"]["text"], sha256_of(row["image"]))
        for row in selected(embedded)
    ]
