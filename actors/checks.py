"""The checks of `longview check-task`: whether a task keeps what rollouts, store and policies rely on.

A check is a function that returns a verdict, what it found and what to do about it. Its docstring says what
must hold. An exception that it meets is a finding as well.
"""

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from gymnasium.utils.env_checker import check_env

from longview.actors.control import saving_fault
from longview.actors.environment import checked_action
from longview.actors.task import Action, ActionError, Environment, SimulatorError, Task, cause, make_simulator
from longview.actors.trial import (
    EPISODES,
    STRAYS,
    Played,
    Trial,
    expert_actions,
    play,
    random_actions,
    same,
    try_out,
)
from longview.replay.episode import (
    ACTION,
    BY_EXPERT,
    CONTROLLER,
    OBSERVATION_PREFIX,
    OUTCOMES,
    REWARD,
    TaskSpec,
    validate_step,
)
from longview.replay.errors import EpisodeError

RELIABLE = 0.9
"""Share of its episodes in which an expert should succeed."""
ANY_ACTION_SPACE = "For Box action spaces, we recommend"
"""Advice of gymnasium's that does not apply: policies act within any range."""

Verdict = Literal["ok", "warning", "wrong"]
Judgement = tuple[Verdict, str, str]
"""Verdict, what was found, what to do about it."""


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    check: str
    verdict: Verdict
    found: str
    advice: str = ""
    """Remedy; empty if nothing is to be done."""


def check_task(task: Task) -> Iterator[Finding]:
    """Run all checks on a task.

    Yields:
        what each check found. What depends on something that is wrong is left out.
    """
    spec = _finding("spec", _spec, task)
    yield spec
    if spec.verdict == "wrong":
        return
    try:
        simulator = make_simulator(task)
    except SimulatorError as error:
        yield Finding("simulator", "wrong", str(error), "install what is missing, or mend `make`")
        return
    with closing(simulator):
        yield _finding("gymnasium", _gymnasium, simulator)
        try:
            trial = try_out(task, simulator)
        except Exception as error:
            yield Finding("episodes", "wrong", cause(error), "reset, step and expert must not raise this")
            return
        for name, check in CHECKS.items():
            yield _finding(name, check, trial)


def _spec(task: Task) -> Judgement:
    """Everything in the spec is possible."""
    spec = task.spec
    if not isinstance(spec, TaskSpec):
        return "wrong", f"it is a {type(spec).__name__}", "make it a longview.replay.episode.TaskSpec"
    limited = np.isfinite([spec.action.low, spec.action.high]).all()
    for fits, found, advice in (
        (
            spec.observation,
            "nothing is observed",
            "give `observation` an entry for all that a policy sees",
        ),
        (limited, "the action has no limits", "give `action` the range that the simulator accepts"),
    ):
        if not fits:
            return "wrong", found, advice
    for name in ("control_hz", "max_steps", "demonstrations"):
        if getattr(spec, name) <= 0:
            return "wrong", f"{name} is {getattr(spec, name)}", "make it positive"
    if (longest := spec.context_lengths[-1]) > spec.max_steps:
        found = f"the longest context length is {longest}, an episode has at most {spec.max_steps} steps"
        return "warning", found, "leave out context lengths that no episode can fill"
    keys = ", ".join(f"{key} {array.dtype} {array.shape}" for key, array in spec.observation.items())
    return "ok", f"{spec.name}: observes {keys}; acts by {spec.action.shape[0]} numbers", ""


def _gymnasium(simulator: Environment) -> Judgement:
    """gymnasium's own checker finds nothing."""
    advice = "see https://gymnasium.farama.org/api/env, or derive from longview.actors.environment.TaskEnv"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            check_env(simulator.unwrapped, skip_render_check=True)
        except Exception as error:  # its assertions, and whatever the simulator raises
            return "wrong", f"check_env: {cause(error)}", advice
    said = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
    complaints = [re.sub(r"\x1b\[\d+m|WARN: ", "", text) for text in said if ANY_ACTION_SPACE not in text]
    if complaints:
        return "warning", f"check_env: {complaints[0]}", advice
    return "ok", "check_env finds nothing", ""


def _observations(trial: Trial) -> Judgement:
    """Observations have the spec's keys, shapes, dtypes and ranges."""
    spec, count = trial.task.spec, 0
    rest: dict[str, Any] = {ACTION: np.zeros(spec.action.shape, np.float32), REWARD: np.float32(0)}
    rest[CONTROLLER] = BY_EXPERT
    for played in trial.episodes:
        # The last one of an invalid episode need not be finite.
        seen = played.observations[:-1] if played.outcome == "invalid" else played.observations
        for step, observation in enumerate(seen):
            place = f"seed {played.seed}, step {step}"
            try:
                arrays = {OBSERVATION_PREFIX + key: row for key, row in observation.items()}
                validate_step(arrays | rest, spec)
            except (EpisodeError, AttributeError) as error:
                return "wrong", f"{place}: {error}", "observe what the spec says, as a dict of arrays"
            for key, array in spec.observation.items():
                row, low, high = observation[key], np.float32(array.low), np.float32(array.high)
                if row.size and not low <= row.min() <= row.max() <= high:
                    found = (
                        f"{place}: {key} lies in [{row.min():g}, {row.max():g}], not in [{low:g}, {high:g}]"
                    )
                    return "wrong", found, "give `low` and `high` room for all that can be seen"
        count += len(seen)
    return "ok", f"{count:,} observations fit the spec", ""


def _actions(trial: Trial) -> Judgement:
    """Actions within the spec's range are accepted, all others are refused."""
    space = trial.task.spec.action
    for played in (*trial.strays, trial.idle):
        if played.end == "refused":
            return "wrong", f"within the range: {played.refusal}", "accept it, or change the spec"
    for bad in (np.nan, space.high + 1 + abs(space.high)):
        action = trial.idle.actions[0].copy()
        action[0] = bad
        trial.simulator.reset(seed=0)
        try:
            trial.simulator.step(action)
        except ActionError:
            continue
        advice = "raise longview.actors.task.ActionError, as TaskEnv does"
        return "warning", f"action[0] = {bad:g} is accepted: not in [{space.low:g}, {space.high:g}]", advice
    return "ok", f"accepts [{space.low:g}, {space.high:g}], refuses what is not finite or outside", ""


def _outcomes(trial: Trial) -> Judgement:
    """Episodes end with a known outcome, rewards are finite, and a success is rewarded."""
    for played in trial.episodes:
        place = f"seed {played.seed}"
        for step, reward in enumerate(played.rewards):
            if not isinstance(reward, int | float | np.number) or not np.isfinite(reward):
                return "wrong", f"{place}, step {step}: reward is {reward!r}", "return a finite number"
        if played.end in ("terminated", "truncated") and played.outcome not in OUTCOMES:
            advice = f"at the last step, set it to one of {', '.join(OUTCOMES)}"
            return "wrong", f'{place} ends with info["outcome"] = {played.outcome!r}', advice
        if played.end == "truncated" and played.outcome not in ("failure", "invalid"):
            advice = "terminate an episode that is decided; at the time limit it is a `failure`"
            return "wrong", f"{place} is cut off at the time limit as `{played.outcome}`", advice
        if played.outcome == "success" and not max(played.rewards) > 0:
            return "warning", f"{place} succeeds without a reward", "reward the last step of a success"
    counts = {name: sum(played.outcome == name for played in trial.episodes) for name in OUTCOMES}
    return "ok", ", ".join(f"{count} {name}" for name, count in counts.items() if count), ""


def _time_limit(trial: Trial) -> Judgement:
    """Every episode ends by itself, at the spec's max_steps at the latest."""
    limit, longest = trial.task.spec.max_steps, 0
    for played in trial.episodes:
        length = len(played.actions)
        if not played.end:
            advice = "return truncated=True at step max_steps, as TaskEnv does"
            return "wrong", f"seed {played.seed} goes on after max_steps {limit}", advice
        if played.end == "truncated" and length < limit:
            found = f"seed {played.seed} is cut off after {length} steps, max_steps is {limit}"
            return "warning", found, "let the spec's max_steps be the only time limit"
        longest = max(longest, length)
    return "ok", f"the longest episode has {longest} of {limit} steps", ""


def _seeds(trial: Trial) -> Judgement:
    """An episode follows from its seed and its actions alone, and other seeds give other episodes."""
    first, advice = (
        trial.led[0],
        "draw from the generator that `start` is given, or from self.np_random, alone",
    )

    def again(simulator: Environment, seed: int) -> Played:
        return play(trial.task, simulator, seed, lambda rng: iter(first.actions))

    if not same(again(trial.simulator, first.seed), first):
        return "wrong", f"seed {first.seed} gives another episode for the same actions", advice
    with closing(make_simulator(trial.task)) as other:
        if not same(again(other, first.seed), first):
            found = f"seed {first.seed} gives another episode for the same actions in a new simulator"
            return "wrong", found, "start every episode alike, whatever came before"
    if all(same(again(trial.simulator, seed), first) for seed in range(1, EPISODES)):
        return "wrong", f"{EPISODES} seeds give the same episode", advice
    return "ok", "an episode follows from its seed and actions, in a new simulator too", ""


def _expert(trial: Trial) -> Judgement:
    """The expert follows from seed and state, acts within the range, and succeeds."""
    task = trial.task
    if task.expert is None:
        return "ok", "none: it is learnt from human demonstrations", ""
    for played in trial.led:
        for action in played.actions:
            if found := _unfit(task.spec, action):
                return "wrong", f"seed {played.seed}: {found}", "return float32 (A,) within the spec's range"
    again = play(task, trial.simulator, 0, partial(expert_actions, task.expert, trial.simulator))
    if not np.array_equal(again.actions, trial.led[0].actions):
        advice = "draw its variety from the generator that it is given"
        return "wrong", "it acts otherwise when seed 0 is played again", advice
    successes = sum(played.outcome == "success" for played in trial.led)
    found = f"succeeds in {successes} of {EPISODES} episodes"
    if successes == 0:
        return "wrong", found, "there is nothing to learn from: mend the expert, or the task's outcome"
    if successes < RELIABLE * EPISODES:
        return "warning", found, "policies learn its failures too: make it more reliable"
    return "ok", found, ""


def _labels(trial: Trial) -> Judgement:
    """The expert labels states that random actions led to."""
    task, simulator, labels = trial.task, trial.simulator, list[Action]()
    start = task.expert
    if start is None:
        return "ok", "no expert: what a policy does will not be labelled", ""

    def astray(rng: np.random.Generator) -> Iterator[Action]:
        label = start(simulator, rng)
        for action in random_actions(task.spec, rng):
            labels.append(label())
            yield action

    for seed in range(STRAYS):
        play(task, simulator, seed, astray)
    unfit = next(filter(None, (_unfit(task.spec, label) for label in labels)), None)
    if unfit:
        return "wrong", f"where random actions led to: {unfit}", "act within the range from any state"
    return "ok", f"{len(labels):,} states that random actions led to have labels within the range", ""


def _plans(trial: Trial) -> Judgement:
    """A state that was saved is restored to the last bit, so that the expert can make plans."""
    if trial.task.expert is None:
        return "ok", "no expert: nobody makes plans", ""
    with closing(make_simulator(trial.task)) as simulator:
        wrong = saving_fault(trial.task, simulator)
    if wrong:
        found = f"collect.kind=labels, collect.gate=distance and collect.hand_back are refused: {wrong}"
        return "warning", found, "write `save` and `restore` that bring back the whole state"
    return "ok", "a state that was saved is restored to the last bit", ""


def _rendering(trial: Trial) -> Judgement:
    """`render` returns a picture (H, W, 3) uint8 that changes during an episode; or none is offered."""
    if "rgb_array" not in trial.simulator.metadata.get("render_modes", []):
        return "ok", "draws no pictures: reports and videos cannot show it", ""
    pictures: list[Any] = []
    with closing(make_simulator(trial.task, "rgb_array")) as scene:
        scene.reset(seed=0)
        pictures.append(deepcopy(scene.render()))
        play(trial.task, scene, 0, lambda rng: iter(trial.led[0].actions))
        pictures.append(deepcopy(scene.render()))
    for picture in pictures:
        kind = f"{getattr(picture, 'dtype', type(picture).__name__)} {getattr(picture, 'shape', '')}"
        if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.shape[2:] != (3,):
            return "wrong", f"render returns {kind}", "return an array (H, W, 3) of uint8"
    if np.array_equal(*pictures):
        return "warning", "first and last picture of an episode are equal", "draw the present state"
    return "ok", f"pictures of {kind}", ""


def _speed(trial: Trial) -> Judgement:
    """The simulator is faster than real time."""
    spec, led = trial.task.spec, trial.led
    steps = sum(len(played.rewards) for played in trial.episodes)
    rate = steps / sum(played.step_seconds for played in trial.episodes)
    reset = sum(played.reset_seconds for played in led) / len(led)
    length = sum(len(played.rewards) for played in led) / len(led)
    seconds = spec.demonstrations * (reset + length / rate)
    found = (
        f"{rate:,.0f} steps/s, {1000 * reset:.1f} ms a reset: {spec.demonstrations} demonstrations take "
        f"{seconds:,.0f} s in one process"
    )
    if rate < spec.control_hz:
        return "warning", found, f"it is slower than its own {spec.control_hz:g} Hz: use many actors"
    return "ok", found, ""


CHECKS: dict[str, Callable[[Trial], Judgement]] = {
    "observations": _observations,
    "actions": _actions,
    "outcomes": _outcomes,
    "time limit": _time_limit,
    "seeds": _seeds,
    "expert": _expert,
    "labels": _labels,
    "plans": _plans,
    "rendering": _rendering,
    "speed": _speed,
}
"""Checks of episodes that could be played, in order."""


def _finding(name: str, check: Callable[[Any], Judgement], subject: Any) -> Finding:
    try:
        return Finding(name, *check(subject))
    except SimulatorError as error:
        return Finding(name, "warning", str(error), "this machine cannot check it")
    except Exception as error:  # a task of others may raise anything
        return Finding(name, "wrong", cause(error), f"this must not be raised. {check.__doc__}")


def _unfit(spec: TaskSpec, action: Any) -> str:
    """Tell why an expert's action cannot be executed and stored; empty if it can."""
    if not isinstance(action, np.ndarray) or action.dtype != np.float32:
        return f"action is {getattr(action, 'dtype', type(action).__name__)}, not a float32 array"
    try:
        checked_action(spec, action)
    except ActionError as error:
        return str(error)
    return ""
