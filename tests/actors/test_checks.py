"""The checks of `longview check-task`: built-in tasks pass, every kind of breakage is found."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike

from longview.actors.checks import Finding, check_task
from longview.actors.environment import SimulatedTask, TaskEnv
from longview.actors.task import Action, Environment, Expert, load_task
from longview.replay.episode import ArraySpec, TaskSpec

SPEC = TaskSpec(
    name="line",
    observation={"x": ArraySpec((1,), low=-30.0, high=30.0)},
    action=ArraySpec((1,), low=-1.0, high=1.0),
    control_hz=10.0,
    max_steps=20,
    context_lengths=(1, 8),
    demonstrations=10,
)


class Line(TaskEnv):
    """Go home along a line; nothing is wrong with it."""

    def start(self, rng: np.random.Generator) -> None:
        self.x = float(rng.uniform(5, 9) * rng.choice((-1, 1)))

    def advance(self, action: Action) -> None:
        self.x += float(action[0])

    def observe(self) -> Mapping[str, ArrayLike]:
        return {"x": [self.x]}

    def outcome(self) -> str | None:
        return "success" if abs(self.x) < 0.6 else None

    def render(self) -> Any:
        return np.full((4, 4, 3), 128 + 4 * int(self.x), np.uint8)


def expert(env: Environment, rng: np.random.Generator) -> Expert:
    line: Any = env.unwrapped
    return lambda: np.clip([-line.x], -1, 1).astype(np.float32)


class Changed(Line):
    """What `step` returns is changed on its way out."""

    def changed(self, end: bool, **step: Any) -> dict[str, Any]:
        raise NotImplementedError

    def step(self, action: Action) -> Any:
        names = ("observation", "reward", "terminated", "truncated", "info")
        step = dict(zip(names, super().step(action), strict=True))
        return tuple((step | self.changed(step["terminated"] or step["truncated"], **step)).values())


def change(**news: Any) -> type[Line]:
    """A line whose `step` returns something else, by name: a value, or a function of the episode's end."""

    class Other(Changed):
        def changed(self, end: bool, **step: Any) -> dict[str, Any]:
            return {name: new(end) if callable(new) else new for name, new in news.items()}

    return Other


def having(**methods: Callable[..., Any]) -> type[Line]:
    """A line with other methods."""
    return type("Other", (Line,), methods)


def start_anywhere(line: Any, rng: Any) -> None:
    line.x = float(np.random.default_rng().uniform(5, 9))


def start_where_it_was(line: Any, rng: np.random.Generator) -> None:
    line.x = float(rng.uniform(5, 9)) + 0.01 * getattr(line, "before", 0)
    line.before = 1


def start_at_seven(line: Any, rng: Any) -> None:
    line.x = 7.0


def accept_anything(line: Any, action: Action) -> Any:
    return Line.step(line, np.clip(np.nan_to_num(action), -1, 1))


def fall_over(line: Any, action: Any) -> None:
    raise KeyError("leg")


def acting(choose: Callable[[Any], Any]) -> Callable[..., Expert]:
    """An expert that acts by the simulator."""
    return lambda env, rng: lambda: choose(env.unwrapped)


def near_home_only(line: Any) -> Any:
    assert abs(line.x) < 10
    return np.clip([-line.x], -1, 1).astype(np.float32)


def to_the_right_only(line: Any) -> Any:
    return np.array([1.0 if line.x < 0 else 0.0], np.float32)


@dataclass(frozen=True)
class Case:
    """Something wrong with a task, and what must be found."""

    check: str
    verdict: str
    found: str
    simulator: type[Line] = Line
    expert: Any = expert
    spec: TaskSpec = SPEC


CASES = (
    Case("spec", "wrong", "max_steps is 0", spec=replace(SPEC, max_steps=0)),
    Case("spec", "wrong", "nothing is observed", spec=replace(SPEC, observation={})),
    Case("spec", "wrong", "the action has no limits", spec=replace(SPEC, action=ArraySpec((1,)))),
    Case("spec", "warning", "context length is 64", spec=replace(SPEC, context_lengths=(1, 64))),
    Case(
        "simulator", "wrong", "task line: its simulator cannot be made: TypeError", having(__init__=lambda: 0)
    ),
    Case("gymnasium", "wrong", "check_env: ", change(observation=[1.0])),
    Case("episodes", "wrong", "KeyError: 'leg' (test_checks.py", having(advance=fall_over)),
    Case("observations", "wrong", "missing arrays ['observation.x']", change(observation={})),
    Case("observations", "wrong", "float64[1], expected float32[1]", change(observation={"x": np.zeros(1)})),
    Case("observations", "wrong", "not finite", having(observe=lambda line: {"x": [np.nan]})),
    Case(
        "observations", "wrong", "x lies in [50, 50], not in [-30, 30]", having(observe=lambda _: {"x": [50]})
    ),
    Case("actions", "warning", "action[0] = nan is accepted", having(step=accept_anything)),
    Case("outcomes", "wrong", "reward is nan", change(reward=np.nan)),
    Case("outcomes", "wrong", 'info["outcome"] = None', change(info={})),
    Case("outcomes", "wrong", "'won'", change(info=lambda end: {"outcome": "won"} if end else {})),
    Case("outcomes", "wrong", "at the time limit as `success`", change(info={"outcome": "success"})),
    Case("outcomes", "warning", "succeeds without a reward", change(reward=0.0)),
    Case("time limit", "wrong", "seed 0 goes on after max_steps 20", change(truncated=False)),
    Case("time limit", "warning", "seed 0 is cut off after 1 steps", change(truncated=True)),
    Case("seeds", "wrong", "gives another episode for the same actions", having(start=start_anywhere)),
    Case("seeds", "wrong", "in a new simulator", having(start=start_where_it_was)),
    Case("seeds", "wrong", "20 seeds give the same episode", having(start=start_at_seven)),
    Case(
        "expert",
        "wrong",
        "float64, not a float32 array",
        expert=acting(lambda line: np.clip([-line.x], -1, 1)),
    ),
    Case(
        "expert", "wrong", "must be in [-1, 1]", expert=acting(lambda line: np.array([-line.x], np.float32))
    ),
    Case(
        "expert", "wrong", "acts otherwise", expert=acting(lambda _: np.random.random(1).astype(np.float32))
    ),
    Case("expert", "wrong", "succeeds in 0 of 20", expert=acting(lambda _: np.zeros(1, np.float32))),
    Case("expert", "warning", "of 20 episodes", expert=acting(to_the_right_only)),
    Case("labels", "wrong", "AssertionError: assert ", expert=acting(near_home_only)),
    Case("plans", "warning", "collect.hand_back are refused: the same 10", having(restore=lambda *_: None)),
    Case(
        "plans", "warning", "KeyError: 'leg' (test_checks.py", having(save=lambda line: fall_over(line, None))
    ),
    Case("rendering", "wrong", "float64 (4, 4, 3)", having(render=lambda _: np.zeros((4, 4, 3)))),
    Case("rendering", "wrong", "returns NoneType", having(render=lambda _: None)),
    Case("rendering", "warning", "are equal", having(render=lambda _: np.zeros((4, 4, 3), np.uint8))),
    Case("speed", "warning", "steps/s", spec=replace(SPEC, control_hz=1e9)),
)


def found(case: Case) -> list[Finding]:
    return list(check_task(SimulatedTask(case.spec, case.simulator, case.expert)))


def test_nothing_is_wrong_with_a_task_that_is_right() -> None:
    findings = found(Case("", "", ""))
    assert {finding.verdict for finding in findings} == {"ok"}, findings
    assert len({finding.check for finding in findings}) == 12
    assert not any(finding.advice for finding in findings)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.check}: {case.found}")
def test_what_is_wrong_is_found_with_what_to_do(case: Case) -> None:
    (finding,) = [finding for finding in found(case) if finding.check == case.check]
    assert finding.verdict == case.verdict, finding
    assert case.found in finding.found
    assert finding.advice


def test_a_task_without_an_expert_is_none_the_worse() -> None:
    findings = {finding.check: finding for finding in found(Case("", "", "", expert=None))}
    assert {finding.verdict for finding in findings.values()} == {"ok"}
    assert findings["expert"].found.startswith("none")


@pytest.mark.parametrize(
    "name",
    [
        *("return_point", "counting", "push_t"),
        *(
            pytest.param(name, marks=[pytest.mark.slow, pytest.mark.timeout(600)])
            for name in ("lift", "square", "grasp_and_return", "push_and_return", "count_scoops")
        ),
    ],
)
def test_nothing_is_wrong_with_the_tasks_that_come_along(name: str) -> None:
    findings = list(check_task(load_task(name)))
    assert len(findings) == 12
    assert not [finding for finding in findings if finding.verdict == "wrong"]
