import pytest
import torch
from torch import Tensor

from longview.learner.config import policy_config
from longview.learner.encoder import Camera, FrameEncoder, crop, spatial_softmax

SIZE = (36, 40)
"""Size of the crops. The images are 40 x 44, so a crop has 5 x 5 possible places."""


def images(frames: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (frames, 40, 44, 3), dtype=torch.uint8, generator=generator)


def encoder(cameras: int = 2, **settings: bool) -> FrameEncoder:
    torch.manual_seed(0)
    return FrameEncoder(policy_config(token_size=8, **settings), 3, [SIZE] * cameras)


CENTRE = torch.full((6, 2), 0.5)


def test_crops_lie_at_their_places() -> None:
    """Each frame's crop equals a plain slice, from corner to corner and in the centre."""
    image_FHWC, last = images(6), 1 - 2**-24  # the largest number that torch.rand draws
    shift_F2 = torch.tensor([[0, 0], [last, 0], [0, last], [last, last], [0.5, 0.5], [0.2, 0.99]])
    places = [(0, 0), (4, 0), (0, 4), (4, 4), (2, 2), (1, 4)]
    cropped = crop(image_FHWC, SIZE, shift_F2)
    assert cropped.dtype == torch.uint8
    for i, (down, right) in enumerate(places):
        expected = image_FHWC[i, down : down + 36, right : right + 40]
        assert torch.equal(cropped[i], expected.permute(2, 0, 1))


def test_a_crop_of_everything_is_the_image() -> None:
    image_FHWC = images(6)
    assert torch.equal(crop(image_FHWC, (40, 44), torch.rand(6, 2)), image_FHWC.permute(0, 3, 1, 2))


@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_spatial_softmax_finds_the_place_of_a_peak(scale: float) -> None:
    """A flat map is centred, and a sharper peak is located more closely. Across comes before down."""
    maps = torch.zeros(1, 3, 3, 5)
    maps[0, 1, 0, 4] = maps[0, 2, 2, 1] = scale
    share = torch.softmax(torch.tensor([scale] + [0.0] * 14), 0)
    far = float(share[0] - share[1])
    expected = torch.tensor([[0, far, -0.5 * far, 0, -far, far]])
    torch.testing.assert_close(spatial_softmax(maps), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("width", "parameters"), [(16, 706_224), (32, 2_807_104), (64, 11_192_928)])
def test_a_camera_is_a_resnet18(width: int, parameters: int) -> None:
    """The parameters are those of torchvision's resnet18, except its classifier.

    resnet18 has 11,689,512 parameters, of which 513,000 are its classifier. A camera has 32 maps of 512
    channels and their biases instead.
    """
    camera = Camera(width)
    assert sum(parameter.numel() for parameter in camera.parameters()) == parameters
    assert 11_689_512 - 513_000 + 32 * 513 == 11_192_928
    norms = [module for module in camera.modules() if isinstance(module, torch.nn.GroupNorm)]
    assert len(norms) == 20
    assert all(norm.num_channels // norm.num_groups == 16 for norm in norms)


def test_tokens_are_of_each_frame_alone() -> None:
    made, state, (left, right) = encoder(), torch.randn(6, 3), (images(6), images(6, seed=1))
    together = made(state, [left, right], CENTRE)
    assert (together.shape, together.dtype) == ((6, 8), torch.float32)
    for i in range(6):
        one = slice(i, i + 1)
        alone = made(state[one], [left[one], right[one]], CENTRE[one])
        torch.testing.assert_close(alone, together[one], rtol=0, atol=1e-5)


def test_every_camera_and_the_state_matter_and_learn() -> None:
    made, state, (left, right) = encoder(), torch.randn(6, 3), (images(6), images(6, seed=1))
    token = made(state, [left, right], CENTRE)
    for other in (
        made(state, [right, right], CENTRE),
        made(state, [left, left], CENTRE),
        made(state + 1, [left, right], CENTRE),
        made(state, [left, right], torch.zeros(6, 2)),
    ):
        assert (token - other).abs().amax(dim=1).min() > 1e-4
    token.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in made.parameters())


def test_cameras_have_a_network_each_or_share_one() -> None:
    each, shared = encoder(), encoder(share_cameras=True)
    assert (len(each.cameras), len(shared.cameras)) == (2, 1)
    image = images(6)
    features = [each.cameras[i](crop(image, SIZE, CENTRE)) for i in range(2)]
    assert (features[0] - features[1]).abs().max() > 1e-4
    weight = shared.layers[0].weight.data
    weight[:, 3 : 3 + 64] = weight[:, 3 + 64 :]
    state, other = torch.randn(6, 3), images(6, seed=1)
    one, swapped = shared(state, [image, other], CENTRE), shared(state, [other, image], CENTRE)
    torch.testing.assert_close(one, swapped, rtol=0, atol=1e-5)


def test_without_cameras_or_without_a_state() -> None:
    assert encoder(cameras=0)(torch.randn(6, 3), [], CENTRE).shape == (6, 8)
    blind = FrameEncoder(policy_config(token_size=8), 0, [SIZE])
    assert blind(torch.empty(6, 0), [images(6)], CENTRE).shape == (6, 8)
