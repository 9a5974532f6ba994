"""Compare numbers of windows per segment by the loss on unseen episodes after equal training times.

The policies see images. With more windows per segment, a training step encodes fewer frames, so more steps
fit into the same time. In return, the windows of a step are more alike.
"""

import time
from dataclasses import replace
from statistics import fmean

import torch
from common import Row, finish, machine, parser, results
from rich.console import Console
from training import demonstrated, training

from longview.cluster.run.config import RunConfig, preset_file, read_config, task_of
from longview.learner.laps import TrainingProgress
from longview.replay.store import EpisodeStore

WINDOWS = (1, 2, 4, 8, 16)
DEMONSTRATIONS, UNSEEN = 30, 6
CALIBRATION = 24
"""Steps of a first, short training, which measures how long one step takes."""
SETTINGS = (
    "actors.cameras.names=[agentview]",
    "actors.noise=0.02",
    "learner.batch_size=32",
    "learner.learning_rate=0.001",
)


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--task", default="grasp_and_return")
    options.add_argument("--seconds", type=float, default=200.0, help="processor time of each training")
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    options.add_argument("overrides", nargs="*", metavar="key=value")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    seconds = 5.0 if chosen.quick else chosen.seconds
    config = read_config(preset_file(chosen.task), [*SETTINGS, *chosen.overrides], task=chosen.task)
    where = machine(task=chosen.task, seconds=seconds, seeds=chosen.seeds)
    found: dict[int, list[TrainingProgress]] = {}
    unseen = 2 if chosen.quick else UNSEEN
    for seed in chosen.seeds:
        episodes = unseen + (4 if chosen.quick else DEMONSTRATIONS)
        with demonstrated(task_of(config), config.actors, episodes, seed) as store:
            held_out = store.ids("demo")[-unseen:]
            store.hold_out(held_out)
            for windows in WINDOWS[:: 2 if chosen.quick else 1]:
                Console().print(f"seed {seed}, {windows} windows per segment", highlight=False)
                found.setdefault(windows, []).append(trained(config, store, held_out, windows, seconds, seed))
    finish(results(where, rows(found), {}), {}, chosen.json)


def trained(
    config: RunConfig, store: EpisodeStore, held_out: list[str], windows: int, seconds: float, seed: int
) -> TrainingProgress:
    """Train for about `seconds` of processor time and return the last progress report."""
    reports: list[TrainingProgress] = []
    task, unseen = task_of(config), [store.read(id) for id in held_out]

    def train(steps: int) -> float:
        """Train for this many steps and return the processor seconds, without validation."""
        learner = replace(
            config.learner,
            windows_per_segment=windows,
            steps=steps,
            warmup=min(100, steps // 10),
            publish_every=steps,
            report_every=steps,
        )
        started = time.process_time()
        training(task, store, learner, seed, reports.append, unseen)
        return time.process_time() - started - reports[-1].validation_s

    train(max(CALIBRATION, round(CALIBRATION * seconds / train(CALIBRATION))))
    return reports[-1]


def rows(found: dict[int, list[TrainingProgress]]) -> list[Row]:
    """Return the rows of the table, with one sample per seed."""
    made = []
    for windows, ends in found.items():
        case = f"{windows} windows per segment"
        losses = [fmean(end.validation_loss_by_context.values()) for end in ends]
        errors = [100 * fmean(end.action_error_by_context.values()) for end in ends]
        waits = [100 * end.data_wait_s / (end.data_wait_s + end.step * end.step_s) for end in ends]
        made += [
            Row("steps", case, "", [float(end.step) for end in ends]),
            Row("validation_loss", case, "", losses),
            Row("action_error", case, "% of the range", errors),
            Row("data_wait", case, "% of the time", waits),
        ]
    return made


if __name__ == "__main__":
    main()
