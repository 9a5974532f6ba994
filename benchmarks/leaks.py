"""Measure how well a single frame reveals what a policy should have to remember.

Episodes of the expert, or of a policy, are aligned at the moment from which the task needs memory: an object
was left alone in the middle, a scoop was completed, or a puck was put back for another attempt. Classifiers
then guess the answer from single frames, at every step from the last frame that shows it to the decision. As
a control, they guess it from the history that a policy may see.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import Row, finish, machine, parser, results
from numpy.typing import NDArray
from rich.progress import track
from sklearn.decomposition import PCA
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from longview.actors.task import load_task
from longview.actors.tasks.arm import ArmEnv
from longview.actors.tasks.render import Renderer
from longview.actors.tasks.slide_puck import FRICTION, HOLD_STEPS
from longview.cluster.run.config import preset_file, read_config
from longview.learner.policy import policy_from_bytes
from longview.learner.session import PolicySession
from longview.monitoring.success import wilson_interval

TARGETS = {"told_by_one_frame": "<= 10", "told_by_history": ">= 99"}
CAMERAS, SIZE = ("agentview", "robot0_eye_in_hand"), 84
PICTURES = 6
"""Steps of a turn at which pictures are taken."""
FOLDS = 5
ARM = 7
"""Number of the arm's joints."""
POOL = 7
"""Side, in pixels, of the squares that are averaged before images are classified."""
COMPONENTS = 30
"""Principal components of the images."""

Features = NDArray[np.float64]


@dataclass(frozen=True)
class Question:
    """The thing that has to be remembered in one task, and the steps during which it has to be."""

    asked: Callable[[Any], int]
    """Counts, given the environment, how often the task has begun to need memory so far."""
    answer: Callable[[Any], int]
    """Returns, given the environment, the answer that must be remembered from then on."""
    answers: int
    """Number of possible answers, all equally likely."""
    window: range
    """Steps relative to that moment, from the last frame that shows the answer to the decision."""
    often: int = 1
    """Number of turns per episode that are examined."""


QUESTIONS = {
    "grasp_and_return": Question(lambda env: env.visited, lambda env: env.side, 2, range(0, 18)),
    "push_and_return": Question(lambda env: env.visited, lambda env: env.origin, 5, range(-24, 4, 3)),
    "count_scoops": Question(lambda env: env.scoops, lambda env: env.scoops, 2, range(-3, 1), often=2),
    "slide_puck": Question(
        lambda env: env.attempt,
        lambda env: int(env.friction > np.sqrt(np.prod(FRICTION))),  # the rougher half of all lanes
        2,
        range(HOLD_STEPS + 1),
        often=2,
    ),
}


@dataclass
class Frame:
    """One step: what a policy sees of it, and what it does not see."""

    seen: Mapping[str, NDArray[Any]]
    positions: Features
    """Positions of all joints, the arm's first; none in a scene without an arm."""
    images: Mapping[str, Features]
    """Small grey images by camera, flattened; empty except at some steps."""


@dataclass
class Turn:
    """An episode, aligned at one of the moments from which it needs memory."""

    episode: int
    frames: Sequence[Frame]
    now: int
    answer: int


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--task", choices=list(QUESTIONS), action="append", help="by default all")
    arguments.add_argument(
        "--policy", type=Path, help="roll out this policy.safetensors instead of the expert"
    )
    arguments.add_argument(
        "--images", action="store_true", help="also classify camera images, at some of the steps"
    )
    options = arguments.parse_args()
    where = machine(quick=options.quick, policy=options.policy and str(options.policy), images=options.images)
    rows = []
    for name in options.task or QUESTIONS:
        turns = list(collect(name, 400 if options.quick else 2000, options.policy, options.images))
        rows += told(name, QUESTIONS[name], turns)
    finish(results(where, rows, {}), TARGETS, options.json)


def collect(name: str, episodes: int, policy_file: Path | None, images: bool) -> Iterator[Turn]:
    """Roll out episodes and yield their turns; an episode that never needs memory has none."""
    task = load_task(name)
    question, noise = QUESTIONS[name], read_config(preset_file(name), [], task=name).actors.noise
    policy = None if policy_file is None else policy_from_bytes(policy_file.read_bytes())
    env: Any = task.make("rgb_array" if images else None)
    arm = isinstance(env, ArmEnv)
    renderer = Renderer(env.model, SIZE) if images and arm else None
    for episode in track(range(episodes), name, transient=True):
        rng = np.random.default_rng((episode, 0))
        observation, _ = env.reset(seed=2 * episode)
        choose = by_expert(task, env, rng, noise) if policy is None else by_policy(policy, rng)
        frames, moments = [], []
        ended = False
        while not ended:
            frames.append(Frame(observation, env.data.qpos.copy() if arm else np.empty(0), {}))
            before = question.asked(env)
            observation, _, terminated, truncated, _ = env.step(choose(observation))
            ended = terminated or truncated
            if question.asked(env) > before and len(moments) < question.often:
                moments.append((len(frames), question.answer(env)))
        for now, answer in moments:
            turn = Turn(episode, frames, now, answer)
            if renderer is not None:
                look(env, renderer, turn, pictured(question))
            yield turn
    env.close()


def pictured(question: Question) -> range:
    """Return the steps, relative to the moment, at which pictures are taken."""
    return question.window[:: max(1, len(question.window) // PICTURES)]


def look(env: Any, renderer: Renderer, turn: Turn, offsets: range) -> None:
    """Set the simulator back to some of a turn's frames and take pictures; it needs a reset afterwards."""
    import mujoco

    for offset in offsets:
        if 0 <= turn.now + offset < len(turn.frames):
            frame = turn.frames[turn.now + offset]
            env.data.qpos[:] = frame.positions
            mujoco.mj_forward(env.model, env.data)
            frame.images = {camera: pooled(renderer.render(env.data, camera)) for camera in CAMERAS}


def by_expert(task: Any, env: Any, rng: np.random.Generator, noise: float) -> Callable[[Any], Any]:
    """Return a function that acts as the expert, with the noise of demonstrations."""
    act = task.expert(env, rng)

    def choose(_: Any) -> Any:
        label = act()
        return np.clip(label + noise * rng.standard_normal(label.shape), -1, 1).astype(np.float32)

    return choose


def by_policy(policy: Any, rng: np.random.Generator) -> Callable[[Any], Any]:
    """Return a function that acts as a policy at its longest context."""
    session, queue, frames, executed, fresh = PolicySession(policy, 1), [], [], [], [True]

    def choose(observation: Any) -> Any:
        frames.append({key: observation[key] for key in policy.spec.observation})
        if not queue:
            new = {key: np.stack([frame[key] for frame in frames]) for key in frames[0]}
            past = np.reshape(executed, (len(executed), *policy.spec.action.shape)).astype(np.float32)
            queue.extend(session.act([0], [new], [past], np.array(fresh), policy.horizon.context, [rng])[0])
            frames.clear()
            executed.clear()
            fresh[0] = False
        executed.append(queue.pop(0))
        return executed[-1]

    return choose


def told(name: str, question: Question, turns: Sequence[Turn]) -> list[Row]:
    """Return how well each kind of frame reveals the answer, at the step where it reveals most.

    A value is the upper end of the 95 % interval of the accuracy, in percentage points above chance. The last
    row is the accuracy from the history, in percent.
    """
    chance, worst = 100 / question.answers, dict[str, float]()
    for offset in question.window:
        at = [turn for turn in turns if 0 <= turn.now + offset < len(turn.frames)]
        for kind, features in single(at, offset).items():
            upper = max(100 * accuracy(model, features, at)[1] for model in models())
            worst[kind] = max(worst.get(kind, 0.0), upper - chance)
    steps = f"{question.window[0]}..{question.window[-1]}"
    rows = [Row("told_by_one_frame", f"{name} {steps}, {kind}", "points", [x]) for kind, x in worst.items()]
    decision = question.window[-1]
    at = [turn for turn in turns if turn.now + decision < len(turn.frames)]
    depth = load_task(name).spec.context_lengths[-1]
    history = np.stack([past(turn, turn.now + decision, depth) for turn in at])
    forest = ExtraTreesClassifier(300, random_state=0)
    best = max(100 * accuracy(model, history, at)[0] for model in (*models(), forest))
    return [*rows, Row("told_by_history", f"{name}, the last {depth} frames", "%", [best])]


def single(turns: Sequence[Turn], offset: int) -> dict[str, Features]:
    """Return the features of one frame per turn, (turns, ...), by kind of feature."""
    frames = [turn.frames[turn.now + offset] for turn in turns]
    features = {
        "observation": np.stack([state(frame) for frame in frames]),
        "elapsed time": np.array([[turn.now + offset] for turn in turns], float),
    }
    if frames[0].positions.size:
        features["joint angles"] = np.stack([frame.positions[:ARM] for frame in frames])
    for camera in frames[0].images:
        pixels = np.stack([frame.images[camera] for frame in frames])
        features[camera] = PCA(COMPONENTS).fit_transform(pixels)
    return features


def state(frame: Frame) -> Features:
    """Return what is observed, and the positions of objects relative to the hand, if it is observed."""
    values = [value for _, value in sorted(frame.seen.items())]
    hand = frame.seen.get("hand_pos")
    beside = [] if hand is None else [value - hand for value in values if value.shape == hand.shape]
    return np.concatenate([*values, *beside])


def pooled(image: NDArray[np.uint8]) -> Features:
    """Return a smaller grey image, flattened."""
    size = image.shape[0] // POOL
    return image.reshape(size, POOL, size, POOL, 3).mean(axis=(1, 3, 4)).ravel()


def past(turn: Turn, now: int, depth: int) -> Features:
    """Return the last `depth` observations, newest first; before the start, the first one is repeated."""
    return np.concatenate([state(turn.frames[max(0, now - age)]) for age in range(depth)])


def models() -> tuple[Any, Any]:
    """Return new classifiers: nearest neighbours, and logistic regression."""
    return KNeighborsClassifier(15), LogisticRegression(max_iter=300)


def accuracy(model: Any, features: Features, turns: Sequence[Turn]) -> tuple[float, float]:
    """Return a classifier's cross-validated accuracy and the upper end of its 95 % interval.

    No episode is in both the training and the test part.
    """
    answers, episodes = (np.array([getattr(turn, name) for turn in turns]) for name in ("answer", "episode"))
    guesses = cross_val_predict(
        make_pipeline(StandardScaler(), model), features, answers, groups=episodes, cv=GroupKFold(FOLDS)
    )
    right = int((guesses == answers).sum())
    return right / len(answers), wilson_interval(right, len(answers))[1]


if __name__ == "__main__":
    main()
