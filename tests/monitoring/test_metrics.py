import re
from pathlib import Path

import pytest

from longview.monitoring.metrics import CATALOGUE, Metric, UnknownMetric, markdown, metric


@pytest.mark.parametrize("entry", CATALOGUE.values(), ids=CATALOGUE)
def test_names_and_labels_follow_prometheus(entry: Metric) -> None:
    assert re.fullmatch(r"longview_[a-z]+(_[a-z]+)*", entry.name)
    assert entry.name.endswith("_total") == (entry.kind == "counter")
    assert entry.kind == "gauge" or entry.merge == "sum"
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", label) for label in entry.labels)
    assert not {"reporter", "incarnation", "worker", "actor", "run", "le"} & set(entry.labels)
    assert (entry.kind == "histogram") == bool(entry.buckets)
    assert list(entry.buckets) == sorted(set(entry.buckets))
    assert entry.help[-1] != "."


def test_an_unknown_metric_suggests_the_nearest() -> None:
    with pytest.raises(UnknownMetric, match="did you mean longview_loss"):
        metric("longview_los")


def test_the_documentation_is_the_catalogue() -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    assert page == markdown(), "run `make generated`"
