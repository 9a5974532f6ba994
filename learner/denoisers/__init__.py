"""Networks that denoise actions."""

from collections.abc import Callable, Mapping
from functools import partial

from learner.config import Architecture, Horizon, PolicyConfig
from learner.denoisers.conditioning import CrossAttention, Film
from learner.denoisers.denoiser import Context, Denoiser, Predict
from learner.denoisers.dit import DiT
from learner.denoisers.unet import UNet

__all__ = ["Context", "Denoiser", "Predict", "make"]

DENOISERS: Mapping[Architecture, Callable[[PolicyConfig, Horizon, int], Denoiser]] = {
    "unet_cross": partial(UNet, conditioning=CrossAttention),
    "unet_film": partial(UNet, conditioning=Film),
    "dit": DiT,
}


def make(config: PolicyConfig, horizon: Horizon, action_size: int) -> Denoiser:
    """The untrained denoiser of a policy."""
    return DENOISERS[config.architecture](config, horizon, action_size)
