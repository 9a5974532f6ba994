"""Encoder of frames: one frame becomes one token.

Legend (docs/notation.md): F frames, D dimensions of the state, E token features, C channels, H height,
W width.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from longview.learner.config import PolicyConfig

KEYPOINTS = 32
"""Number of keypoints that a camera's network locates, as in Diffusion Policy, arXiv 2303.04137."""
GROUP = 16
"""Number of channels that are normalised together."""


class FrameEncoder(nn.Module):
    """Encoder of a frame: normalised state and keypoints of the cameras' images become one token."""

    def __init__(self, config: PolicyConfig, state_size: int, crops: Sequence[tuple[int, int]]) -> None:
        """
        Args:
            config: sizes of the networks.
            state_size: D, the numbers in a frame's state.
            crops: height and width of the crop of each camera's image.
        """
        super().__init__()
        self.crops, size = crops, config.token_size
        networks = crops[:1] if config.share_cameras else crops
        self.cameras = nn.ModuleList(Camera(config.camera_width, config.camera_stages) for _ in networks)
        self.layers = nn.Sequential(
            nn.Linear(state_size + 2 * KEYPOINTS * len(crops), size),
            nn.GELU(),
            nn.Linear(size, size),
            nn.LayerNorm(size),  # without it, the code of a token's age, added later, would dominate
        )

    def forward(self, state_FD: Tensor, images: Sequence[Tensor], shift_F2: Tensor) -> Tensor:
        """Encode frames as tokens (F, E).

        Args:
            state_FD: normalised states.
            images: images (F, H, W, 3) of each camera, uint8; or what `keypoints` returns for them.
            shift_F2: place of each frame's crop, as in `crop`.
        """
        features = [state_FD]
        for index, image in enumerate(images):
            features.append(image if image.dim() == 2 else self.keypoints(index, image, shift_F2))
        token_FE: Tensor = self.layers(torch.cat(features, dim=1))
        return token_FE

    def keypoints(self, index: int, image_FHWC: Tensor, shift_F2: Tensor) -> Tensor:
        """Locate the keypoints of one camera's images: (F, 2 * `KEYPOINTS`), in [-1, 1].

        Args:
            index: number of the camera.
            image_FHWC: its images, uint8.
            shift_F2: place of each frame's crop, as in `crop`.
        """
        camera = self.cameras[index % len(self.cameras)]
        image_FCHW = crop(image_FHWC, self.crops[index], shift_F2)
        if image_FCHW.device.type != "cpu":
            # With the layout of the images, gradients of convolutions would have another one than the vector
            # that they are copied into, and each would cost a launch of its own.
            image_FCHW = image_FCHW.contiguous()
        found: Tensor = camera(image_FCHW)
        return found


def crop(image_FHWC: Tensor, size: tuple[int, int], shift_F2: Tensor) -> Tensor:
    """Crop images. Returns (F, C, height, width).

    Args:
        image_FHWC: images.
        size: height and width of a crop, in pixels.
        shift_F2: place of each crop in [0, 1), down and right, as a share of the possible places; 0.5 is the
            centre.
    """
    # (F, places down, places right, C, height, width)
    everywhere = image_FHWC.unfold(1, size[0], 1).unfold(2, size[1], 1)
    downs, rights = everywhere.shape[1:3]
    down_F, right_F = (shift_F2[:, 0] * downs).long(), (shift_F2[:, 1] * rights).long()
    return everywhere[torch.arange(len(image_FHWC), device=shift_F2.device), down_F, right_F]


class Camera(nn.Module):
    """ResNet18 (arXiv 1512.03385) that ends in a spatial softmax (arXiv 1504.00702).

    It normalises groups of channels rather than batches, because batch statistics do not suit averaged
    weights.
    """

    def __init__(self, width: int, stages: int = 4) -> None:
        """
        Args:
            width: channels of the first stage.
            stages: number of stages, at most 4. Each but the first halves the map and doubles the channels.
        """
        super().__init__()
        widths = (width, width, 2 * width, 4 * width, 8 * width)[: stages + 1]
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
        """Locate the keypoints of uint8 images: (F, 2 * `KEYPOINTS`), in [-1, 1]."""
        return spatial_softmax(self.keypoints(self.blocks(self.stem(image_FCHW / 127.5 - 1))))


class BasicBlock(nn.Module):
    """Two convolutions with a residual connection around them."""

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
    """Make the normalisation of groups of `GROUP` channels."""
    return nn.GroupNorm(channels // GROUP, channels)


def spatial_softmax(map_FCHW: Tensor) -> Tensor:
    """Return the mean place of each channel's map in [-1, 1]: (F, 2 C), all C across, then all C down.

    The weights of the places are a softmax over the map.
    """
    share_FCHW = map_FCHW.flatten(2).softmax(dim=2).view_as(map_FCHW)
    down_H, across_W = (torch.linspace(-1, 1, side, device=map_FCHW.device) for side in map_FCHW.shape[2:])
    across_FC = (share_FCHW.sum(dim=2) * across_W).sum(dim=2)
    down_FC = (share_FCHW.sum(dim=3) * down_H).sum(dim=2)
    return torch.cat((across_FC, down_FC), dim=1)
