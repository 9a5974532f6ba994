"""One frame -> one token.

Legend: F frames, D dimensions of the state, E token size, C channels, H height, W width, K keypoints.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from longview.learner.config import PolicyConfig

KEYPOINTS = 32
"""K: how many things a camera's network looks for, after Diffusion Policy."""
GROUP = 16
"""Channels that are normalised together."""


class FrameEncoder(nn.Module):
    """A token for each frame: of its normalised state and of where its cameras' networks see what."""

    def __init__(self, config: PolicyConfig, state_size: int, crops: Sequence[tuple[int, int]]) -> None:
        """
        Args:
            state_size: D.
            crops: per camera, height and width of what its network is shown.
        """
        super().__init__()
        self.crops, size = crops, config.token_size
        networks = crops[:1] if config.share_cameras else crops
        self.cameras = nn.ModuleList(Camera(config.camera_width) for _ in networks)
        self.layers = nn.Sequential(
            nn.Linear(state_size + 2 * KEYPOINTS * len(crops), size),
            nn.GELU(),
            nn.Linear(size, size),
            nn.LayerNorm(size),  # or the token's place, added later, drowns what was seen
        )

    def forward(self, state_FD: Tensor, images: Sequence[Tensor], shift_F2: Tensor) -> Tensor:
        """Tokens (F, E).

        Args:
            images: per camera, (F, H, W, 3) uint8.
            shift_F2: as `crop` takes it.
        """
        features = [state_FD]
        for index, (image_FHWC, size) in enumerate(zip(images, self.crops, strict=True)):
            camera = self.cameras[index % len(self.cameras)]
            features.append(camera(crop(image_FHWC, size, shift_F2)))
        token_FE: Tensor = self.layers(torch.cat(features, dim=1))
        return token_FE


def crop(image_FHWC: Tensor, size: tuple[int, int], shift_F2: Tensor) -> Tensor:
    """Parts of images, (F, C, H', W'), of this height and width.

    Args:
        shift_F2: in [0, 1): how far down and how far right among the possible places; 0.5 is the centre.
    """
    everywhere = image_FHWC.unfold(1, size[0], 1).unfold(2, size[1], 1)  # (F, downs, rights, C, H', W')
    downs, rights = everywhere.shape[1:3]
    down_F, right_F = (shift_F2[:, 0] * downs).long(), (shift_F2[:, 1] * rights).long()
    return everywhere[torch.arange(len(image_FHWC), device=shift_F2.device), down_F, right_F]


class Camera(nn.Module):
    """ResNet18, arXiv 1512.03385, that ends in a spatial softmax, arXiv 1504.00702.

    It normalises groups of channels instead of batches, whose statistics would not suit averaged weights.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = (width, width, 2 * width, 4 * width, 8 * width)
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False), norm(width), nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        )  # fmt: skip
        self.blocks = nn.Sequential()
        for inputs, outputs in pairwise(widths):
            self.blocks.append(BasicBlock(inputs, outputs, stride=outputs // inputs))
            self.blocks.append(BasicBlock(outputs, outputs, stride=1))
        self.keypoints = nn.Conv2d(widths[-1], KEYPOINTS, 1)

    def forward(self, image_FCHW: Tensor) -> Tensor:
        """Places (F, 2 K) from images of uint8."""
        return spatial_softmax(self.keypoints(self.blocks(self.stem(image_FCHW / 127.5 - 1))))


class BasicBlock(nn.Module):
    """Two convolutions, and what they leave as it is."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False), norm(outputs), nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), norm(outputs),
        )  # fmt: skip
        self.skip = nn.Sequential()
        if stride > 1:
            self.skip.extend([nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), norm(outputs)])

    def forward(self, x_FCHW: Tensor) -> Tensor:
        return functional.relu(self.layers(x_FCHW) + self.skip(x_FCHW))


def norm(channels: int) -> nn.GroupNorm:
    """Of groups of `GROUP` channels."""
    return nn.GroupNorm(channels // GROUP, channels)


def spatial_softmax(map_FKHW: Tensor) -> Tensor:
    """Where each map is large: its mean place (F, 2 K), all across and then all down, both in [-1, 1]."""
    share_FKHW = map_FKHW.flatten(2).softmax(dim=2).view_as(map_FKHW)
    down_H, across_W = (torch.linspace(-1, 1, side, device=map_FKHW.device) for side in map_FKHW.shape[2:])
    across_FK = (share_FKHW.sum(dim=2) * across_W).sum(dim=2)
    down_FK = (share_FKHW.sum(dim=3) * down_H).sum(dim=2)
    return torch.cat((across_FK, down_FK), dim=1)
