"""The state of a run as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from jsfree.monitor.newest import NewestPair
from jsfree.monitor.status import DONE, INTERRUPTED, RUNNING, WAITING, NodeStatus, RunStatus, StageStatus
from jsfree.monitor.training import Point, TrainingStatus
from jsfree.report.reading import Failure
from jsfree.report.tables import duration

BLOCKS = "▁▂▃▄▅▆▇█"
BAR = 20
"""Characters of a progress bar."""
SHOWN_FAILURES = 5
STATE_STYLES = {RUNNING: "bold cyan", DONE: "bold green", "failed": "bold red", INTERRUPTED: "bold red"}
STATE_WORDS = {INTERRUPTED: "its driver no longer runs; resume it with `jsfree run`"}
SYMBOLS = {DONE: "✓", RUNNING: "▶", WAITING: "·"}
CURVES = {
    "loss": "loss",
    "validation_loss": "loss, held out",
    "accuracy": "accuracy",
    "chosen_reward": "chosen reward",
    "rejected_reward": "rejected reward",
    "nll": "NLL per token",
}


def view(status: RunStatus, width: int) -> Iterator[RenderableType]:
    """The parts of the view of a run, from top to bottom."""
    yield _headline(status)
    if status.error:
        yield Text.assemble(("error: ", "bold red"), status.error)
    yield _stages(status)
    if status.nodes:
        yield Text(_nodes(status.nodes))
    yield _failures(status.failures)
    if status.training is not None:
        yield _training(status.training, width)
    for pair in status.pairs:
        yield _pair(pair)


def _headline(status: RunStatus) -> Text:
    words = STATE_WORDS.get(status.state)
    state = (f"{status.state}{f' ({words})' if words else ''}", STATE_STYLES.get(status.state, "bold"))
    rounds = f"{status.rounds_done} of {status.rounds} round{'s' if status.rounds != 1 else ''} done"
    driver = f"  driver: {status.driver}" if status.driver else ""
    return Text.assemble((status.uri, "bold"), "  ", state, f"  {rounds}  {status.hardware}{driver}")


def _stages(status: RunStatus) -> Table:
    """A line for each stage of the newest round that was begun, and one for each other round."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("stage", "progress", "rows", "failed", "rows/s", "tokens/s", "replicas", "time"):
        table.add_column(title, justify="left" if title in ("stage", "progress") else "right", header_style="dim")
    newest = max((stage.round for stage in status.stages if stage.status != WAITING), default=1)
    for number in range(1, max(stage.round for stage in status.stages) + 1):
        of_round = [stage for stage in status.stages if stage.round == number]
        if number == newest or any(stage.status == RUNNING for stage in of_round):
            for stage in of_round:
                table.add_row(*_stage(stage, several=status.rounds > 1))
        else:
            table.add_row(*_round(number, of_round))
    return table


def _round(number: int, stages: Sequence[StageStatus]) -> list[Text]:
    """The line of a round as a whole."""
    done = [stage for stage in stages if stage.status == DONE]
    symbol = SYMBOLS[DONE] if len(done) == len(stages) else SYMBOLS[WAITING]
    style = "" if done else "dim"
    failed = sum(stage.rows_failed for stage in stages)
    seconds = duration(sum(stage.seconds or 0.0 for stage in done)) if done else ""
    cells = ["", str(failed) if failed else "", "", "", "", seconds]
    counts = f"{len(done)} of {len(stages)} stages"
    return [Text(f"{symbol} round {number}", style), Text(counts, style), *(Text(cell, style) for cell in cells)]


def _stage(stage: StageStatus, *, several: bool) -> list[Text]:
    style = {WAITING: "dim", RUNNING: "bold"}.get(stage.status, "")
    name = f"{SYMBOLS.get(stage.status, '!')} {f'{stage.round}/' if several else ''}{stage.name}"
    rows = "" if stage.rows is None else f"{stage.rows:,}"
    if stage.rows is not None and stage.status != DONE and stage.rows_total is not None:
        rows += f" / {stage.rows_total:,}{' steps' if stage.name == 'train' else ''}"
    cells = [
        rows,
        str(stage.rows_failed) if stage.rows_failed else "",
        "" if not stage.rows_per_second else f"{stage.rows_per_second:,.1f}",
        "" if not stage.tokens_per_second else f"{stage.tokens_per_second:,.0f}",
        "" if stage.replicas is None else str(stage.replicas),
        _time(stage),
    ]
    return [Text(name, style), _progress(stage), *(Text(cell, style) for cell in cells)]


def _progress(stage: StageStatus) -> Text:
    if stage.status == DONE:
        return Text("reused" if stage.reused_from else "done", "green")
    if stage.share is None:
        return Text(stage.status, "dim")
    full = round(BAR * stage.share)
    return Text.assemble(("━" * full, "cyan"), ("━" * (BAR - full), "dim"), f" {100 * stage.share:.0f} %")


def _time(stage: StageStatus) -> str:
    if stage.status == DONE:
        return duration(stage.seconds or 0.0)
    return "" if stage.seconds_remaining is None else f"{duration(stage.seconds_remaining)} left"


def _nodes(nodes: Sequence[NodeStatus]) -> str:
    shown = []
    for node in nodes:
        kinds = f" ({', '.join(node.accelerators)})" if node.accelerators else ""
        gpus = f", {node.gpus:g} GPUs{kinds}" if node.gpus else ""
        shown.append(f"{node.host}: {node.cpus:g} CPUs{gpus}")
    return f"nodes  {'; '.join(shown)}"


def _failures(failures: Sequence[Failure]) -> Text:
    if not failures:
        return Text("failed rows  none")
    lines = [f"{each.rows:>6}  {each.stage}: {each.kind}  (such as: {each.example})" for each in failures]
    more = [f"        and {len(lines) - SHOWN_FAILURES} more kinds"] if len(lines) > SHOWN_FAILURES else []
    return Text("\n".join(["failed rows by kind", *lines[:SHOWN_FAILURES], *more]))


def _training(training: TrainingStatus, width: int) -> Text:
    steps = f" of {training.steps}" if training.steps is not None else ""
    lines = [f"training of round {training.round}: step {training.step}{steps}"]
    plot_width = max(10, min(60, width - 50))
    for name, label in CURVES.items():
        points = training.curves.get(name, [])
        if points:
            lines.append(
                f"  {label:<16} {points[0].value:>8.3f} {sparkline(points, plot_width)} {points[-1].value:.3f}"
            )
    return Text("\n".join(lines))


def sparkline(points: Sequence[Point], width: int) -> str:
    """A curve as at most ``width`` characters, from its lowest to its highest value."""
    count = min(width, len(points))
    parts = [points[index * len(points) // count : (index + 1) * len(points) // count] for index in range(count)]
    means = [sum(point.value for point in part) / len(part) for part in parts]
    low, high = min(means), max(means)
    span = (high - low) or 1.0
    return "".join(BLOCKS[min(len(BLOCKS) - 1, int((mean - low) / span * len(BLOCKS)))] for mean in means)


def _pair(pair: NewestPair) -> Text:
    inverted = "  inverted" if pair.inverted else ""
    lines: list[tuple[str, str] | str] = [(f"newest pair  {pair.image}{inverted}", "dim")]
    for caption in pair.captions:
        ratio = "imported" if caption.ratio is None else f"h = {caption.ratio:.2f}"
        score = "" if caption.score is None else f", score {100 * caption.score:.1f}"
        lines += ["\n  ", (f"{ratio}{score}  ", "dim"), " ".join(caption.text.split())]
    return Text.assemble(*lines)
