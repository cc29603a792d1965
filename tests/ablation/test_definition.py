"""The file of an ablation: its cells and grid, and the messages for mistakes that users make."""

from pathlib import Path

import pytest
import yaml

from jsfree import config
from jsfree.ablation.definition import load
from jsfree.errors import ConfigError


@pytest.fixture
def written(tmp_path):
    """Writes an ablation beside a base configuration and returns its path."""

    def write(**entries) -> Path:
        (tmp_path / "base.yaml").write_text("train: {beta: 0.3, epochs: 2}\n", encoding="utf-8")
        content = {"name": "test", "base": "base.yaml", "cells": {"plain": {}}, **entries}
        (tmp_path / "ablation.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return tmp_path / "ablation.yaml"

    return write


def cell_config(ablation, name: str, seed: int = 0) -> config.RunConfig:
    cell = next(cell for cell in ablation.cells if cell.name == name)
    return ablation.config(cell, seed, "runs/x")


def test_cells_override_common_settings_and_these_the_base(written):
    file = written(
        set={"train.beta": 0.2, "source": {"count": 50}},
        cells={"plain": None, "nested": {"train": {"beta": 0.7}}, "dotted": {"train.beta": 0.9, "select.first": 2}},
    )
    ablation = load(file, ["source.count=60"])
    betas = {cell.name: cell_config(ablation, cell.name).train.beta for cell in ablation.cells}
    assert betas == {"plain": 0.2, "nested": 0.7, "dotted": 0.9}
    dotted = cell_config(ablation, "dotted", seed=4)
    assert (dotted.seed, dotted.run, dotted.source.count, dotted.select.first, dotted.train.epochs) == (
        4, "runs/x", 60, 2, 2,
    )  # fmt: skip


def test_the_grid_is_the_product_of_its_axes(written):
    file = written(
        cells={},
        grid={
            "train.beta": [0.1, 1],
            "ratios": {
                "fixed": {"generate.ratios": {"distribution": "fixed", "high": 0.4}},
                "uniform": {"generate": {"ratios": {"distribution": "uniform"}}},
            },
        },
    )
    ablation = load(file)
    assert [cell.name for cell in ablation.cells] == [
        "beta=0.1,ratios=fixed", "beta=0.1,ratios=uniform", "beta=1,ratios=fixed", "beta=1,ratios=uniform",
    ]  # fmt: skip
    assert ablation.cells[2].labels == {"train.beta": "1", "ratios": "fixed"}
    chosen = cell_config(ablation, "beta=1,ratios=fixed")
    assert (chosen.train.beta, chosen.generate.ratios.distribution, chosen.generate.ratios.high) == (1, "fixed", 0.4)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"cels": {}}, "ablation.yaml: unknown key 'cels'; did you mean 'cells'?"),
        ({"cells": {"a": {"train.bta": 1}}}, "ablation.yaml: cell 'a': unknown key 'train.bta'; did you mean 'beta'?"),
        ({"cells": {"a": {"train": {"beta": -1}}}}, "ablation.yaml: cell 'a': train.beta: Input should be greater"),
        ({"set": {"sorce.count": 1}}, "ablation.yaml: set: unknown key 'sorce'; did you mean 'source'?"),
        ({"set": {"train": {"beta": 1}, "train.beta": 2}}, "set: 'train.beta' is written twice, nested and with dots"),
        ({"cells": {"a": {"seed": 1}}}, "cell 'a': 'seed' cannot be set here; list it in 'seeds'"),
        ({"cells": {"a": {"run": "x"}}}, "cell 'a': 'run' cannot be set here; --out chooses the folder"),
        ({"cells": {"a/b": {}}}, "the cell name 'a/b' cannot be the name of a folder"),
        ({"cells": {}}, "there are no cells; write 'cells' or 'grid'"),
        ({"base": "absent.yaml"}, "ablation.yaml: base: .*absent.yaml: No such file or directory"),
        ({"seeds": [-1]}, "ablation.yaml: seeds: Input should be greater than or equal to 0"),
        ({"grid": {"train.beta": 3}}, "ablation.yaml: grid.train.beta"),
        (
            {"grid": {"train.beta": [1], "other": {"x": {"train.beta": 2}}}},
            "grid: beta=1,other=x: two axes set train.beta",
        ),
        ({"figure": {"metrics": ["recal"]}}, "unknown metric 'recal'; did you mean 'recall'?"),
        ({"figure": {"x": "beta"}, "grid": {"train.beta": [1]}}, "figure: x: the grid has no axis 'beta'"),
        ({"figure": {"mode": "beam"}}, "figure: mode: not every cell has the evaluation mode 'beam'"),
        ({"grid": {"train.beta": [1]}, "cells": {"beta=1": {}}}, "the cell name 'beta=1' occurs twice"),
    ],
)
def test_mistakes_are_reported_with_file_key_and_remedy(written, entries, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        load(written(**entries))


def test_a_mistake_in_the_base_names_the_base(written, tmp_path):
    file = written()
    (tmp_path / "base.yaml").write_text("train: {bta: 1}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"base.yaml: unknown key 'train.bta'; did you mean 'beta'\?"):
        load(file)


def test_an_override_of_what_cells_differ_in_is_refused(written):
    file = written(cells={"plain": {}, "low": {"train": {"beta": 0.1}}})
    for override in ("train.beta=0.5", "train={beta: 0.5}"):
        with pytest.raises(ConfigError, match="cell 'low' sets it; choose cells with --only"):
            load(file, [override])
    assert cell_config(load(file, ["train.epochs=3"]), "low").train.epochs == 3


def test_cells_are_chosen_by_name_or_pattern(written):
    ablation = load(written(cells={}, grid={"train.beta": [0.1, 0.2], "train.epochs": [1, 2]}))
    assert [cell.name for cell in ablation.restricted(["beta=0.1,*"], [7]).cells] == [
        "beta=0.1,epochs=1", "beta=0.1,epochs=2",
    ]  # fmt: skip
    assert ablation.restricted(["beta=0.2,epochs=1"], [7]).seeds == (7,)
    with pytest.raises(ConfigError, match=r"no cell 'beta=0.1,epochs=3'; did you mean 'beta=0.1,epochs="):
        ablation.restricted(["beta=0.1,epochs=3"], [])
