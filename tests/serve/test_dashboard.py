"""The dashboard of deploy/ shows the metrics that the server exports."""

import json
import re

from serve.http.metrics import Metrics
from tests.support import ROOT

DASHBOARD = json.loads((ROOT / "deploy" / "grafana-dashboard.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
METRIC = re.compile(r"\b(?:vllm|jsfree):[a-z0-9_]+")


def exported() -> set[str]:
    """The names of the series that the server exports."""
    suffixes = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",), "gauge": ("",)}
    return {family.name + suffix for family in Metrics().registry.collect() for suffix in suffixes[family.type]}


def test_every_metric_of_the_dashboard_is_exported():
    names = {name for query in QUERIES for name in METRIC.findall(query)}
    assert len(names) >= 10
    assert names - exported() == set()


def test_every_metric_of_the_server_is_on_the_dashboard():
    shown = " ".join(QUERIES)
    families = {family.name for family in Metrics().registry.collect()}
    assert {name for name in families if name not in shown} == set()


def test_queries_are_well_formed():
    for query in QUERIES:
        assert query.count("(") == query.count(")")
        assert query.count("{") == query.count("}")
        assert ("rate(" in query) == any(suffix in query for suffix in ("_total", "_bucket"))
        labels = set(re.findall(r"by \(([a-z_, ]+)\)", query)[0].split(", ")) - {"le"}
        assert labels <= {"model_name", "finished_reason", "reason", "status", "route"}
        assert ("model_name" in labels) == ("$model_name" in query)
