"""One frame -> one token."""

from torch import Tensor, nn


class FrameEncoder(nn.Module):
    """A token (..., token_size) for each frame: its normalised state observations, concatenated (..., D)."""

    def __init__(self, frame_size: int, token_size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(frame_size, token_size),
            nn.GELU(),
            nn.Linear(token_size, token_size),
            nn.LayerNorm(token_size),  # or the token's place, added later, drowns what was seen
        )

    def forward(self, frame: Tensor) -> Tensor:
        token: Tensor = self.layers(frame)
        return token
