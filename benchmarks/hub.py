"""Time that the metrics hub takes for a scrape, a report and an exchange, by the number of actors."""

import pickle
from urllib.request import ProxyHandler, build_opener

from common import Row, arguments, finish, machine, results, seconds

from longview.actors.config import ActorsConfig
from longview.actors.task import load_task
from longview.actors.worker import Order, Worker
from longview.monitoring.hub import Hub, Reporters

ACTORS = (1, 100, 1000)
TARGETS = {"scrape": "<= 1000"}


def actor_report() -> bytes:
    """Make the report of an actor that has done a bit of everything."""
    reports: list[bytes] = []
    actors = ActorsConfig(simulators=4, noise=0)
    worker = Worker(load_task("counting"), actors, 0, "actor-0", None, reports.append)
    worker.work(Order("evaluation", 0, 8, 1), None)
    for source in ("demo", "correction"):
        for outcome in ("success", "wrong", "failure"):
            labels = {"task": "counting", "source": source, "outcome": outcome}
            worker.totals.add("longview_episodes_total", 1, **labels)
    worker.totals.observe("longview_publish_to_use_seconds", 3.0)
    worker.work(Order("evaluation", 8, 8, 1), None)
    return reports[-1]


def measure(actors: int, rounds: int) -> list[Row]:
    """Measure each time for a number of actors, in milliseconds, and the number of series."""
    hub, message = Hub("benchmark"), actor_report()
    messages = [message.replace(b"actor-0", b"actor-%d" % index) for index in range(actors)]
    url = f"http://127.0.0.1:{hub.serve()}/metrics"

    def scrape() -> bytes:
        with build_opener(ProxyHandler({})).open(url) as response:
            return bytes(response.read())

    def report() -> None:
        for message in messages:
            hub.report(message)

    kept: Reporters = {}

    def exchange() -> None:
        nonlocal kept
        kept = hub.exchange(kept)
        # Ray keeps the reports for the driver, which fetches them only for a hub that has restarted.
        pickle.dumps(kept, protocol=5)

    report()
    for _ in range(2):  # the hub serves what was exchanged before
        exchange()
    case = f"{actors} actors"
    rows = [
        Row("scrape", case, "ms", [1e3 * seconds(scrape) for _ in range(rounds)]),
        Row("one report", case, "ms", [1e3 * seconds(report) / actors for _ in range(rounds)]),
        Row("exchange with the driver", case, "ms", [1e3 * seconds(exchange) for _ in range(rounds)]),
        Row("series", case, "", [sum(not line.startswith(b"#") for line in scrape().splitlines())]),
    ]
    hub.close()
    return rows


def main() -> None:
    options = arguments(__doc__ or "")
    where = machine()
    rows = [row for actors in ACTORS for row in measure(actors, 5 if options.quick else 21)]
    finish(results(where, rows, {}), TARGETS, options.json)


if __name__ == "__main__":
    main()
