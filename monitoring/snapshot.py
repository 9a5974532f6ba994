"""Snapshots of what the hub serves: values, sums and rates, for those that read it."""

from collections.abc import Sequence
from http.client import HTTPException
from itertools import pairwise
from urllib.request import ProxyHandler, build_opener

from longview.monitoring.metrics import CATALOGUE, metric

Series = dict[tuple[str, ...], float]
"""Values of one metric by `Metric.key`: a value for each label, and of a histogram the part."""


class Snapshot(dict[str, Series]):
    """Series of every metric of the catalogue at one moment; a metric that nobody has reported has none."""

    def total(self, name: str, **labels: str | int) -> float:
        """Sum a metric's values over all series that have these labels; 0 where there are none.

        Args:
            name: the metric's.
            labels: label values to choose by; `le` chooses the part of a histogram, such as `sum`.

        Raises:
            ValueError: the catalogue has no such metric, or other labels for it.
        """
        chosen = {_place(name, label): str(value) for label, value in labels.items()}
        return sum(
            value
            for key, value in self.get(name, {}).items()
            if all(key[place] == text for place, text in chosen.items())
        )

    def by(self, name: str, label: str) -> dict[str, float]:
        """Sum a metric's values for each value of one of its labels.

        Raises:
            ValueError: the catalogue has no such metric, or other labels for it.
        """
        place, sums = _place(name, label), dict[str, float]()
        for key, value in self.get(name, {}).items():
            sums[key[place]] = sums.get(key[place], 0.0) + value
        return sums


Looks = Sequence[tuple[float, Snapshot]]
"""Snapshots of one hub, oldest first, each with the time in seconds at which it was taken."""


def rate(looks: Looks, name: str, **labels: str | int) -> float:
    """Compute a counter's growth per second between the first look and the last; 0 with fewer than two.

    A hub that was restarted may have lost counts for a while. A total that falls is therefore no growth.

    Args:
        looks: at least two, for a rate.
        name: the counter's; or a histogram's, with its part as `le`.
        labels: label values to choose by, as in `Snapshot.total`.
    """
    if len(looks) < 2:
        return 0.0
    totals = [snapshot.total(name, **labels) for _, snapshot in looks]
    grown = sum(max(0.0, after - before) for before, after in pairwise(totals))
    return grown / (looks[-1][0] - looks[0][0])


def read_metrics(url: str, timeout: float = 5.0) -> Snapshot:
    """Read what a hub serves at its /metrics address.

    Raises:
        OSError: nothing answers there within `timeout` seconds, or not a metrics server.
    """
    from prometheus_client.parser import text_string_to_metric_families

    try:
        # A proxy has no business between us and our own hub.
        with build_opener(ProxyHandler({})).open(url, timeout=timeout) as response:
            families = list(text_string_to_metric_families(response.read().decode()))
    except (OSError, HTTPException, ValueError) as error:
        raise OSError(f"no metrics can be read from {url}: {error}") from error
    snapshot = Snapshot({name: {} for name in CATALOGUE})
    for sample in (sample for family in families for sample in family.samples):
        name, part = sample.name, sample.labels.get("le", "sum")
        if name not in CATALOGUE:
            name = name.removesuffix("_bucket").removesuffix("_sum")
        if found := CATALOGUE.get(name):
            key = tuple(sample.labels.get(label, "") for label in found.labels)
            snapshot[name][(*key, part) if found.parts else key] = sample.value
    return snapshot


def _place(name: str, label: str) -> int:
    """Find where a label's value is in the keys of a metric's series."""
    key = metric(name).key
    if label not in key:
        raise ValueError(f"{name} has labels {list(key)}, not {label}")
    return key.index(label)
