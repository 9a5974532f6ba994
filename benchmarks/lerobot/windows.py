"""Print how many windows per second LeRobot's loader delivers, in LeRobot's own environment; see loading.py.

python benchmarks/lerobot/windows.py FOLDER T_O HZ ACTIONS BATCH SECONDS
"""

import sys
import time

import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset

WORKERS = 2


def main() -> None:
    folder, (T_o, hz, actions, batch_size, limit) = sys.argv[1], map(int, sys.argv[2:])
    past = [step / hz for step in range(1 - T_o, 1)]
    cameras = ("observation.front", "observation.wrist")
    times = dict.fromkeys((*cameras, "observation.state"), past)
    times["action"] = [step / hz for step in range(actions)]
    windows = LeRobotDataset("longview/video", root=folder, delta_timestamps=times)
    loader = torch.utils.data.DataLoader(
        windows, batch_size, shuffle=True, num_workers=WORKERS, drop_last=True
    )
    batches = iter(loader)
    shape = next(batches)[cameras[0]].shape
    assert shape[:2] == (batch_size, T_o), shape
    started, delivered = time.perf_counter(), 0
    while time.perf_counter() - started < limit:
        batch = next(batches, None)
        if batch is None:
            batches = iter(loader)
            continue
        delivered += batch_size
    print(delivered / (time.perf_counter() - started))


if __name__ == "__main__":
    main()
