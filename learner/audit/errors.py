"""Action errors of held-out episodes, by what is seen of their past.

Legend (docs/notation.md): G segments, each a whole episode, J windows of each segment, S observed steps, T
action positions, A action dimensions, D dimensions of a frame.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from longview.learner.audit.recordings import POSITIONS, Episodes, Recording, normalised
from longview.learner.audit.regressor import Regressor
from longview.learner.audit.views import Looks, View

FOLDS = 4
"""Parts of the data: each is predicted by a network that was trained on the others."""
STEPS, WARMUP = 600, 100
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 1e-2
SEGMENTS, WINDOWS = 16, 32
"""Episodes of a training step, and decisions of each."""
ACTIONS_SHARE, TIMELESS_SHARE = 0.2, 0.25
"""Share of the training steps in which past actions are seen instead of frames, and of the decisions at which
time is not told."""
TOGETHER = 8
"""Episodes that are predicted at once."""

Progress = Callable[[], None]


@dataclass(frozen=True)
class Auditors:
    """Networks that have each been trained on all parts of the data but one."""

    trained: Sequence[tuple[Regressor, Episodes, NDArray[np.int64]]]
    """Network, all episodes as it was trained to see them, and the indices of those that it has not seen."""
    frames: int
    """Frames of the longest episode."""

    def errors(self, view: View) -> NDArray[np.float32]:
        """Predict every episode by the network that has not seen it.

        Args:
            view: what is seen of the past. With the history of another episode it is that of the next one of
                the same part, at the same time.

        Returns:
            Mean squared error, in variances of the actions, from each frame on: (G, S), NaN behind an
            episode's end.
        """
        count = sum(len(held_out) for _, _, held_out in self.trained)
        error_GS = np.full((count, self.frames), np.nan, np.float32)
        for network, episodes, held_out in self.trained:
            for chosen in np.array_split(held_out, -(-len(held_out) // TOGETHER)):
                donors = chosen
                if view.history == "other":
                    places = np.searchsorted(held_out, chosen)
                    donors = held_out[(places + 1) % len(held_out)]
                found_GS = _held_out_errors(network, episodes, chosen, donors, view)
                error_GS[chosen, : found_GS.shape[1]] = found_GS
        return error_GS


def train_auditors(
    recordings: Sequence[Recording],
    lengths: Sequence[int],
    stride: int,
    hz: float,
    seed: int,
    threads: int,
    progress: Progress,
) -> Auditors:
    """Train one network for each part of the data, on all other parts.

    Args:
        recordings: at least as many episodes as there are parts.
        lengths: context lengths to look back, in frames, ascending.
        stride, hz: as for `normalised`.
        seed: seed of the parts, the weights and all draws.
        threads: networks that are trained at a time.
        progress: called `FOLDS` times `STEPS` times, from any thread.
    """
    order = np.random.default_rng(seed).permutation(len(recordings))
    parts = [np.sort(part) for part in np.array_split(order, FOLDS)]
    made = list(_untrained(recordings, parts, lengths, stride, hz, seed))
    # The operations are small: networks are trained side by side, each on one core.
    with ThreadPoolExecutor(threads, "auditor", torch.set_num_threads, (1,)) as pool:
        running = [
            pool.submit(_train, network, episodes, held_out, lengths, seed + fold, progress)
            for fold, (network, episodes, held_out) in enumerate(made)
        ]
        for training in running:
            training.result()
    return Auditors(made, max(len(recording.frame_SD) for recording in recordings))


def _untrained(
    recordings: Sequence[Recording],
    parts: Sequence[NDArray[np.int64]],
    lengths: Sequence[int],
    stride: int,
    hz: float,
    seed: int,
) -> Iterator[tuple[Regressor, Episodes, NDArray[np.int64]]]:
    for fold, held_out in enumerate(parts):
        known = np.setdiff1d(np.arange(len(recordings)), held_out)
        episodes = normalised(recordings, known.tolist(), stride, hz)
        time = episodes.frames_G.float().mean().item()
        sizes = episodes.frame_GSD.shape[2], episodes.action_GSA.shape[2]
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed + fold)
            yield Regressor(*sizes, POSITIONS, max(lengths), time), episodes, held_out


def _train(
    network: Regressor,
    episodes: Episodes,
    held_out: NDArray[np.int64],
    lengths: Sequence[int],
    seed: int,
    progress: Progress,
) -> None:
    """Train a network at random decisions of the episodes that are not held out, each with a random view."""
    generator = torch.Generator().manual_seed(seed)
    known = torch.from_numpy(np.setdiff1d(np.arange(len(episodes.frames_G)), held_out))
    choices = torch.tensor(lengths)
    optimizer = torch.optim.AdamW(
        network.parameters(), LEARNING_RATE, betas=(0.9, 0.99), weight_decay=WEIGHT_DECAY, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / WARMUP) * (1 + math.cos(math.pi * step / STEPS)) / 2
    )
    for _ in range(STEPS):
        index_G = torch.randint(len(known), (SEGMENTS,), generator=generator)
        batch = episodes.chosen(known[index_G])
        share_GJ = torch.rand(SEGMENTS, WINDOWS, generator=generator)
        now_GJ = (share_GJ * batch.frames_G.unsqueeze(1)).long()
        length_GJ = choices[torch.randint(len(choices), now_GJ.shape, generator=generator)]
        time_GJ = torch.rand(now_GJ.shape, generator=generator) >= TIMELESS_SHARE
        actions = torch.rand((), generator=generator).item() < ACTIONS_SHARE
        looks = Looks(now_GJ, length_GJ, time_GJ, actions)
        action_GJTA, exists_GJT = batch.targets(now_GJ)
        predicted_GJTA = network(batch.frame_GSD, batch.frame_GSD, batch.past_GSA, looks)
        loss = (predicted_GJTA - action_GJTA)[exists_GJT].square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress()


def _held_out_errors(
    network: Regressor,
    episodes: Episodes,
    chosen: NDArray[np.int64],
    donors: NDArray[np.int64],
    view: View,
) -> NDArray[np.float32]:
    """Return the error (G, S) at each frame of the chosen episodes, with the past of the donors."""
    batch, past = episodes.chosen(torch.from_numpy(chosen)), episodes.chosen(torch.from_numpy(donors))
    frames = batch.frame_GSD.shape[1]
    # A donor that ends earlier stays at its last frame.
    index_GS = torch.arange(frames).minimum(past.frames_G.unsqueeze(1) - 1)[..., None]
    past_GSD = past.frame_GSD.gather(1, index_GS.expand(-1, -1, past.frame_GSD.shape[2]))
    past_GSA = past.past_GSA.gather(1, index_GS.expand(-1, -1, past.action_GSA.shape[2]))
    now_GJ = torch.arange(frames).expand(len(chosen), -1)
    action_GJTA, exists_GJT = batch.targets(now_GJ)
    with torch.inference_mode():
        predicted_GJTA = network(batch.frame_GSD, past_GSD, past_GSA, Looks.through(view, now_GJ))
        error_GJT = (predicted_GJTA - action_GJTA).square().mean(dim=3) * exists_GJT
        error_GS = error_GJT.sum(dim=2) / exists_GJT.sum(dim=2)
    found_GS: NDArray[np.float32] = error_GS.numpy()
    return found_GS
