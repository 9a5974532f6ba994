"""Changes the number of a run's actors while the run is under way.

`longview scale` leaves a request in the run's folder. The run's driver looks for one at every turn, and
writes its answer to run.json; the command therefore works from any process or pod that reaches the folder.
The number asked for last is kept in the folder for when the run is resumed.

    scale-request.json   {actors, id}            written by the command, removed by the driver
    scale.json           {actors, configured}    the number asked for, and the config's that it overrides
    run.json: actors     {target, there, leaving, cpus, autoscaled, request, refused}
"""

import json
import logging
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import count as count_up
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longview.cluster.run.config import ConfigError, RunConfig
from longview.cluster.run.folder import Run, RunError, write_atomically

if TYPE_CHECKING:
    from longview.cluster.driver.dispatch import Dispatcher

log = logging.getLogger(__name__)

REQUEST, KEPT = "scale-request.json", "scale.json"
LOOK_SECONDS = 0.2
"""Time between two looks for the driver's answer."""


class Scaling:
    """Keeps a run's actors at the wanted number, as long as `adjust` is called again and again."""

    def __init__(
        self,
        run: Run,
        config: RunConfig,
        dispatcher: "Dispatcher",
        start: Callable[[str], Any],
        refuse: Callable[[RunConfig], None],
        cpus: int | None,
    ) -> None:
        """
        Args:
            run: the run's folder.
            config: the run's config, with the number to begin with.
            dispatcher: has the actors.
            start: starts an actor of the given name, and returns a handle on it.
            refuse: raises ConfigError if a config wants more actors than are possible.
            cpus: CPUs of the one machine that all actors share; None on a cluster.
        """
        self._run, self._config, self._dispatcher = run, config, dispatcher
        self._start, self._refuse, self._cpus = start, refuse, cpus
        self._answer: dict[str, Any] = {"request": None, "refused": None}
        self._told: dict[str, Any] = {}
        kept = _read(run.path / KEPT)
        self._configured: int = config.actors.count
        if kept.get("actors") == config.actors.count:
            self._configured = kept["configured"]
        else:  # the config's number was changed since, and holds again
            (run.path / KEPT).unlink(missing_ok=True)

    @property
    def target(self) -> int:
        """Wanted number of actors."""
        return self._config.actors.count

    def adjust(self) -> None:
        """Take in a request, start actors or let them go, and write down how far that is."""
        if (self._run.path / REQUEST).exists():
            self._take_request()
        dispatcher = self._dispatcher
        free = (name for index in count_up() if (name := f"actor-{index}") not in dispatcher.names)
        for _ in range(self.target - dispatcher.staying):
            name = next(free)
            dispatcher.add(name, self._start(name))
        if dispatcher.staying > self.target:
            dispatcher.let_go(dispatcher.staying - self.target)
        state = {
            "target": self.target,
            "there": dispatcher.there,
            "leaving": dispatcher.leaving,
            "cpus": self._cpus,
            "autoscaled": self._config.placement.autoscaled,
            **self._answer,
        }
        if state != self._told:
            self._run.write_state(actors=state)
            self._told = state

    def _take_request(self) -> None:
        request = _read(self._run.path / REQUEST)
        (self._run.path / REQUEST).unlink(missing_ok=True)
        match request:
            case {"actors": int(actors), "id": int(id)} if actors >= 1:
                refused = self._rescale(actors)
                self._answer = {"request": id, "refused": refused}
                log.info("a request for %d actors: %s", actors, refused or "accepted")
            case _:
                log.warning("a request to scale that cannot be read is ignored: %s", str(request)[:200])

    def _rescale(self, actors: int) -> str | None:
        """Change the wanted number; returns the reason if it is refused."""
        config = replace(self._config, actors=replace(self._config.actors, count=actors))
        try:
            self._refuse(config)
        except ConfigError as error:
            return str(error)
        kept = {"actors": actors, "configured": self._configured}
        write_atomically(self._run.path / KEPT, json.dumps(kept) + "\n")
        self._config = config
        return None


def parse(text: str) -> int:
    """Read the number in `actors=N`.

    Raises:
        ConfigError: the text is not of this form, or N is below 1.
    """
    match = re.fullmatch(r"actors=(\d{1,6})", text)
    if match is None or int(match[1]) < 1:
        raise ConfigError(f"expected actors=N with N at least 1, such as actors=8, not {text!r}")
    return int(match[1])


def ask(run: Run, actors: int, timeout: float, say: Callable[[str], None], *, wait: bool) -> None:
    """Ask the driver of a run under way for another number of actors.

    Args:
        run: the run's folder.
        actors: wanted number of actors.
        timeout: longest wait in seconds.
        say: called with a sentence about the state, whenever that changes.
        wait: wait until all actors are placed; else only until the driver has accepted the request.

    Raises:
        RunError: the run is not under way, ends meanwhile, or somebody asks for another number.
        ConfigError: the driver refuses the number.
        TimeoutError: the wait takes longer.
    """
    if not run.under_way():
        raise RunError(
            f"{run.name} is not under way: go on with it by "
            f"`longview launch --resume {run.typed} actors.count={actors}`"
        )
    id, deadline, said = time.time_ns(), time.monotonic() + timeout, ""
    write_atomically(run.path / REQUEST, json.dumps({"actors": actors, "id": id}) + "\n")
    while True:
        state = run.state().get("actors", {})
        taken = state.get("request") == id
        if taken and state["refused"] is not None:
            raise ConfigError(state["refused"])
        if taken and state["target"] != actors:
            raise RunError(f"somebody has asked for {state['target']} actors meanwhile")
        if taken and (not wait or (state["there"] == actors and not state["leaving"])):
            break
        now = _how_far(state) if taken else "the run has not accepted it yet"
        if time.monotonic() > deadline:
            _withdraw(run, id)
            later = " The run goes on with it." if taken else ""
            raise TimeoutError(f"not done within {timeout:g} s: {now}.{later} --timeout gives it more")
        if now != said and taken:
            say(now)
            said = now
        if not run.under_way():
            _withdraw(run, id)
            raise RunError(f"{run.name} has ended")
        time.sleep(LOOK_SECONDS)
    if state["cpus"] is not None and actors > state["cpus"]:
        say(f"the actors share {state['cpus']} CPUs: more actors than CPUs do not make more steps")
    say(f"{run.name} has {actors} actors" if wait else f"{run.name} now wants {actors} actors")


def scaled_settings(run: Run) -> list[str]:
    """Return the number that `longview scale` last asked for, as an override for a run that is resumed with
    its own config; empty if it was never asked."""
    kept = _read(run.path / KEPT)
    return [f"actors.count={kept['actors']}"] if kept else []


def still_scaled(run: Run, config: RunConfig) -> RunConfig:
    """Put the number of actors that `longview scale` last asked for into a config from elsewhere with which a
    run is resumed, unless that config has another number than before."""
    kept = _read(run.path / KEPT)
    if kept.get("configured") != config.actors.count:
        return config
    return replace(config, actors=replace(config.actors, count=kept["actors"]))


def _how_far(state: dict[str, Any]) -> str:
    parts = []
    if state["there"] < state["target"]:
        room = ""
        if state["cpus"] is None:
            asked = ", which the autoscaler has been asked for" if state["autoscaled"] else ""
            room = f" or wait for room in the cluster{asked}"
        parts.append(f"{state['there']} of {state['target']} actors are there, the others start{room}")
    if state["leaving"]:
        parts.append(f"{state['leaving']} leaving actors finish their orders")
    return "; ".join(parts)


def _withdraw(run: Run, id: int) -> None:
    if _read(run.path / REQUEST).get("id") == id:
        (run.path / REQUEST).unlink(missing_ok=True)


def _read(file: Path) -> dict[str, Any]:
    """Read a JSON object; empty if the file holds none."""
    with suppress(FileNotFoundError, ValueError):
        tree = json.loads(file.read_text())
        return tree if isinstance(tree, dict) else {}
    return {}
