"""Whether a judge can be asked: that its server runs, has the model, and will have it long enough."""

from __future__ import annotations

from datetime import date

from jsfree.checks.findings import Finding, fails, from_error, note, ok
from jsfree.errors import JsfreeError
from jsfree.judge.client import ServedModel
from jsfree.judge.judging import Judge
from jsfree.judge.settings import JudgeSettings

AREA = "judge"
SOON_DAYS = 90
"""A model that ends within so many days is worth a note: results cannot be repeated after it."""


def check_judge(settings: JudgeSettings, today: date) -> list[Finding]:
    """Ask the judge's server for its models; nothing is paid."""
    name = f"{settings.model} at {settings.url}"
    try:
        served = Judge(settings).describe_model()
    except JsfreeError as error:
        return [from_error(AREA, name, error)]
    return [_check_model(settings, name, served), *_check_end(name, served.shutdown_date, today), *_check_pin(settings)]


def _check_model(settings: JudgeSettings, name: str, served: ServedModel) -> Finding:
    if served.is_listed is None:
        return note(AREA, name, "the server answers but does not list its models")
    if not served.is_listed:
        known = ", ".join(served.available[:10]) or "none"
        return fails(AREA, name, f"the server does not have the model {settings.model!r}", f"there are: {known}")
    return ok(AREA, name, "the server has the model")


def _check_end(name: str, end: date | None, today: date) -> list[Finding]:
    if end is None or (end - today).days > SOON_DAYS:
        return []
    remedy = "choose another judge, such as an open model at a fixed revision"
    if end <= today:
        return [fails(AREA, name, f"the vendor shut the model down on {end}", remedy)]
    return [note(AREA, name, f"the vendor shuts the model down on {end}, in {(end - today).days} days", remedy)]


def _check_pin(settings: JudgeSettings) -> list[Finding]:
    if settings.revision is not None:
        return []
    return [
        note(
            AREA, settings.model, "the judge's revision is not known, so later results may differ", "set its 'revision'"
        )
    ]
