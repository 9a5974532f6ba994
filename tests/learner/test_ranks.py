"""Two ranks in plain processes, over gloo."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor

from learner import ranks
from learner.checkpoint import Checkpoint
from learner.config import LearnerConfig
from learner.policy import DiffusionPolicy, policy_from_bytes, policy_to_bytes
from learner.train import flatten, train
from learner.windows import Batch, build
from replay.episode import Episode, Segment

Cut = Callable[[Episode, int, int, int], Segment]
