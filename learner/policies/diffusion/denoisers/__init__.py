"""Networks that denoise actions."""

from collections.abc import Callable, Mapping
from functools import partial

from longview.learner.config import Architecture, Horizon, PolicyConfig
from longview.learner.policies.diffusion.denoisers.conditioning import CrossAttention, FilmConditioning
from longview.learner.policies.diffusion.denoisers.denoiser import Context, Denoiser, Predict
from longview.learner.policies.diffusion.denoisers.dit import DiT
from longview.learner.policies.diffusion.denoisers.unet import UNet

__all__ = ["Context", "Denoiser", "Predict", "make"]

DENOISERS: Mapping[Architecture, Callable[[PolicyConfig, Horizon, int], Denoiser]] = {
    "unet_cross": partial(UNet, conditioning=CrossAttention),
    "unet_film": partial(UNet, conditioning=FilmConditioning),
    "dit": DiT,
}


def make(config: PolicyConfig, horizon: Horizon, action_size: int) -> Denoiser:
    """The untrained denoiser of a policy."""
    return DENOISERS[config.architecture](config, horizon, action_size)
