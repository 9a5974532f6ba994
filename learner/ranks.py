"""Communication between the ranks of one training. With one rank, every function is local."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from longview.learner.checkpoint import Checkpoint, pack, unpack


class RankLost(ConnectionError):
    """Another rank is gone, or did not answer in time. Training can go on from the newest checkpoint."""


@contextmanager
def _exchange() -> Iterator[None]:
    """Turn an error of the communication into RankLost. Gloo raises a plain RuntimeError for it, while errors
    of the device are subclasses."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or type(error) is RuntimeError:
            raise RankLost(f"the exchange with the other learner ranks failed: {error}") from error
        raise


@_exchange()
def join(address: str, rank: int, world: int, device: str, timeout_s: float) -> None:
    """Make this process a rank of a group. `torch.distributed.destroy_process_group()` leaves the group.

    Args:
        address: meeting point, the same for all ranks: `tcp://host:port` or `file:///path`.
        rank: number of this rank, from 0.
        world: number of ranks.
        device: device of the tensors that the ranks will exchange.
        timeout_s: longest time that a rank waits for the others, now and in every exchange.

    Raises:
        RankLost: the others did not come in time. Every function below raises it, too.
    """
    backend = "nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(
        backend, init_method=address, rank=rank, world_size=world, timeout=timedelta(seconds=timeout_s)
    )


@_exchange()
def average(tensor: Tensor, world: int) -> None:
    """Replace a tensor by its mean over all ranks."""
    if world > 1:
        dist.all_reduce(tensor)
        tensor /= world


@_exchange()
def from_first(checkpoint: Checkpoint | None, world: int, device: str) -> Checkpoint:
    """Send rank 0's checkpoint to every rank and return it; the other ranks pass None."""
    data = pack(checkpoint) if checkpoint else b""
    if world > 1:
        size = torch.tensor(len(data), device=device)
        dist.broadcast(size, src=0)
        content = torch.frombuffer(bytearray(data or int(size)), dtype=torch.uint8).to(device)
        dist.broadcast(content, src=0)
        data = content.cpu().numpy().tobytes()
    return unpack(data)


@_exchange()
def from_all(data: bytes, world: int, device: str) -> list[bytes]:
    """Gather one value from each rank. Every rank gets the list, in the order of the ranks."""
    if world == 1:
        return [data]
    size = torch.tensor(len(data), device=device)
    sizes = [torch.empty_like(size) for _ in range(world)]
    dist.all_gather(sizes, size)
    longest = max(int(size) for size in sizes)
    content = torch.frombuffer(bytearray(data.ljust(longest, b"\0")), dtype=torch.uint8).to(device)
    contents = [torch.empty_like(content) for _ in range(world)]
    dist.all_gather(contents, content)
    return [found.cpu().numpy().tobytes()[: int(size)] for found, size in zip(contents, sizes, strict=True)]


@_exchange()
def any_of(flag: bool, world: int, device: str) -> bool:
    """Return on every rank whether the flag is true on at least one."""
    if world == 1:
        return flag
    flags = torch.tensor(int(flag), device=device)
    dist.all_reduce(flags)
    return int(flags) > 0
