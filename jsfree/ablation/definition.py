"""Reads the file of an ablation: its base configuration, its cells, its seeds and what its figure shows.

    name: beta
    description: DPO's beta at two learning rates.
    base: ../miniworld.yaml           # relative to this file
    seeds: [0, 1, 2]
    set: {source: {count: 1200}}      # settings of all cells
    cells:                            # by name, the settings that differ
      paper: {train.beta: 1.0}
    grid:                             # the product of all axes makes further cells
      train.beta: [0.05, 0.1]         # an axis of one setting, by its key
      rate:                           # an axis of labels, each with settings
        slow: {train: {learning_rate: 1e-4}}
        fast: {train: {learning_rate: 4e-4}}
    figure: {x: train.beta, series: rate, metrics: [recall, f1]}

Settings are written nested or with dotted keys, as for ``--set``. A cell's settings take precedence over ``set``, and
these over ``base``.
"""

from __future__ import annotations

import difflib
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from jsfree import config as configuration
from jsfree.config import RunConfig, Section
from jsfree.config.strict_yaml import read_mapping
from jsfree.errors import ConfigError
from jsfree.evaluation.metrics import LABEL_FREE, TRUTH

METRICS = {metric.name: metric for metric in (*LABEL_FREE, *TRUTH)}
RESERVED = {"run": "--out chooses the folder", "seed": "list it in 'seeds'", "reuse": "the ablation sets it"}
"""Settings that an ablation sets itself."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=,+-]*")
Settings = dict[str, Any]
"""Values by dotted key."""


class FigureSettings(Section):
    """What the figure of an ablation shows."""

    x: str | None = None
    """Axis of the grid on the horizontal axis. ``null``: one row for each cell."""
    series: str | None = None
    """Axis of the grid with one line per label. ``null``: one line."""
    metrics: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "response_hallucination",
        "mention_hallucination",
        "recall",
        "f1",
    )
    """Metrics, one panel each."""
    mode: str | None = None
    """Evaluation mode. ``null``: the first one."""

    @field_validator("metrics")
    @classmethod
    def _check_metrics(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in METRICS:
                nearest = difflib.get_close_matches(name, METRICS, n=1)
                hint = f"did you mean {nearest[0]!r}?" if nearest else f"valid names: {', '.join(METRICS)}"
                raise ValueError(f"unknown metric {name!r}; {hint}")
        return names


class AblationFile(Section):
    """The content of an ablation's file, as written."""

    name: Annotated[str, Field(pattern=rf"^{NAME.pattern}$")]
    """Name; the default folder is ``runs/ablations/<name>``."""
    description: str = ""
    """What is compared, for readers of the report."""
    base: str
    """Configuration file, relative to this file."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1)] = (0, 1, 2)
    """Values of the setting ``seed``; every cell is run once with each."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Settings of all cells."""
    cells: dict[str, dict[str, Any] | None] = Field(default_factory=dict)
    """Settings that differ, by name of the cell."""
    grid: dict[str, list[Any] | dict[str, dict[str, Any]]] = Field(default_factory=dict)
    """Axes: the key of a setting with its values, or any name with labels and their settings."""
    figure: FigureSettings = FigureSettings()


@dataclass(frozen=True)
class Cell:
    """One variant of an ablation: settings by dotted key, and for a cell of the grid its label on each axis."""

    name: str
    settings: Settings
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ablation:
    """An ablation: the base configuration's settings, what all cells change, and the cells in order."""

    file: str
    name: str
    description: str
    base: str
    base_settings: Mapping[str, Any]
    common: Settings
    cells: Sequence[Cell]
    seeds: Sequence[int]
    axes: Mapping[str, Sequence[str]]
    """Labels of each axis of the grid, in order."""
    figure: FigureSettings

    def config(self, cell: Cell, seed: int, run: str, reuse: Sequence[str] = ()) -> RunConfig:
        """The configuration of a cell's run with one seed, in the folder ``run``.

        Raises:
            ConfigError: a key is unknown or a value is invalid.
        """
        own = {"run": run, "seed": seed, "reuse": list(reuse)}
        return self._build({**cell.settings, **own}, f"{self.file}: cell {cell.name!r}")

    def check_common(self) -> None:
        """Check the base configuration, alone and with the settings of all cells.

        Raises:
            ConfigError: a key is unknown or a value is invalid.
        """
        configuration.build(self.base_settings, self.base)
        self._build({}, f"{self.file}: set")

    def _build(self, changes: Settings, where: str) -> RunConfig:
        settings = deepcopy(dict(self.base_settings))
        for key, value in {**self.common, **changes}.items():
            configuration.assign(settings, key, deepcopy(value), where)
        return configuration.build(settings, where)

    def restricted(self, only: Sequence[str], seeds: Sequence[int]) -> Ablation:
        """The ablation with some of its cells and with other seeds; empty arguments change nothing.

        Args:
            only: names of cells, or patterns such as ``split=1,*``.

        Raises:
            ConfigError: no cell matches a name.
        """
        for pattern in only:
            if not any(fnmatchcase(cell.name, pattern) for cell in self.cells):
                names = [cell.name for cell in self.cells]
                nearest = difflib.get_close_matches(pattern, names, n=1)
                hint = f"did you mean {nearest[0]!r}?" if nearest else f"cells: {', '.join(names)}"
                raise ConfigError(f"{self.file}: no cell {pattern!r}", hint)
        chosen = [cell for cell in self.cells if not only or any(fnmatchcase(cell.name, each) for each in only)]
        return replace(self, cells=chosen, seeds=tuple(seeds) or self.seeds)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Ablation:
    """Read and validate the file of an ablation and the configuration of each of its cells.

    Args:
        path: a YAML file.
        overrides: strings ``key=value`` as for ``--set``; they take precedence over ``set`` of the file.

    Raises:
        ConfigError: a file cannot be read, a key is unknown, a value is invalid, or an override sets what cells differ
            in.
    """
    file = str(path)
    settings = configuration.validate(AblationFile, read_mapping(_content(Path(path), file), file), file)
    base = Path(os.path.normpath(Path(path).parent / Path(settings.base).expanduser()))
    common = _flat(settings.set, f"{file}: set")
    common |= dict(configuration.parse_override(override) for override in overrides)
    cells = [*_named_cells(settings, file), *_grid_cells(settings, file)]
    ablation = Ablation(
        file=file,
        name=settings.name,
        description=settings.description.strip(),
        base=str(base),
        base_settings=read_mapping(_content(base, f"{file}: base: {base}"), str(base)),
        common=common,
        cells=cells,
        seeds=tuple(dict.fromkeys(settings.seeds)),
        axes={axis: [label for label, _ in _steps(axis, values)] for axis, values in settings.grid.items()},
        figure=settings.figure,
    )
    _check(ablation, overrides)
    return ablation


def _content(path: Path, where: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror}", "correct the path") from error


def _named_cells(settings: AblationFile, file: str) -> Iterator[Cell]:
    for name, changes in settings.cells.items():
        yield Cell(name, _flat(changes or {}, f"{file}: cell {name!r}"))


def _grid_cells(settings: AblationFile, file: str) -> Iterator[Cell]:
    """One cell for each combination of the axes' steps, the last axis varying fastest."""
    axes = {axis: _steps(axis, values) for axis, values in settings.grid.items()}
    for combination in itertools.product(*axes.values()) if axes else ():
        labels = {axis: label for axis, (label, _) in zip(axes, combination, strict=True)}
        name = ",".join(f"{axis.rpartition('.')[2]}={label}" for axis, label in labels.items())
        where = f"{file}: grid: {name}"
        parts = [_flat(changes, where) for _, changes in combination]
        twice = {key for one, other in itertools.combinations(parts, 2) for key in one if key in other}
        if twice:
            raise ConfigError(f"{where}: two axes set {', '.join(sorted(twice))}", "leave it to one of them")
        yield Cell(name, {key: value for part in parts for key, value in part.items()}, labels)


def _steps(axis: str, values: list[Any] | Mapping[str, dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """The labels of an axis with their settings."""
    if isinstance(values, Mapping):
        return list(values.items())
    return [(value if isinstance(value, str) else json.dumps(value), {axis: value}) for value in values]


def _flat(settings: Mapping[str, Any], where: str) -> Settings:
    """Settings by dotted key; an empty mapping is a value.

    Raises:
        ConfigError: a key is written twice, or is set by the ablation itself.
    """
    flat: Settings = {}
    for key, value in _pairs(settings):
        if key in flat:
            raise ConfigError(f"{where}: {key!r} is written twice, nested and with dots", "remove one of them")
        flat[key] = value
    for key, reason in RESERVED.items():
        if key in flat:
            raise ConfigError(f"{where}: {key!r} cannot be set here", reason)
    return flat


def _pairs(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _pairs(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _check(ablation: Ablation, overrides: Iterable[str]) -> None:
    """Check everything that the types of the file's values do not.

    Raises:
        ConfigError: see ``load``.
    """
    file, names = ablation.file, [cell.name for cell in ablation.cells]
    if not names:
        raise ConfigError(f"{file}: there are no cells", "write 'cells' or 'grid'")
    for name in names:
        if not NAME.fullmatch(name) or names.count(name) > 1:
            problem = "occurs twice" if names.count(name) > 1 else "cannot be the name of a folder"
            raise ConfigError(f"{file}: the cell name {name!r} {problem}", "use letters, digits and ._=,+-")
    for key in (configuration.parse_override(override)[0] for override in overrides):
        differing = [cell.name for cell in ablation.cells if any(_overlap(key, own) for own in cell.settings)]
        if key in RESERVED or differing:
            reason = RESERVED.get(key) or f"cell {differing[0]!r} sets it"
            raise ConfigError(f"--set {key}: {reason}", "choose cells with --only, or edit the file")
    ablation.check_common()
    modes = [ablation.config(cell, ablation.seeds[0], "unused").evaluate.modes for cell in ablation.cells]
    _check_figure(ablation, set.intersection(*map(set, modes)))


def _overlap(key: str, other: str) -> bool:
    """Whether one of two dotted keys contains the other."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def _check_figure(ablation: Ablation, modes: set[str]) -> None:
    figure, where = ablation.figure, f"{ablation.file}: figure"
    for name, axis in (("x", figure.x), ("series", figure.series)):
        if axis is not None and axis not in ablation.axes:
            raise ConfigError(f"{where}: {name}: the grid has no axis {axis!r}", f"axes: {', '.join(ablation.axes)}")
    if figure.series is not None and figure.x is None:
        raise ConfigError(f"{where}: 'series' requires 'x'", "name another axis of the grid as 'x'")
    if figure.mode is not None and figure.mode not in modes:
        raise ConfigError(
            f"{where}: mode: not every cell has the evaluation mode {figure.mode!r}",
            f"choose from {', '.join(sorted(modes))}",
        )
