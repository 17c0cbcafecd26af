"""The patch codec: exact where it keeps everything, orthogonal, whitened, saved."""

import pytest
import torch

from outskirts.codec import PatchPCA
from outskirts.errors import OutskirtsError


@pytest.fixture(scope="module")
def images():
    g = torch.Generator().manual_seed(0)
    coarse = torch.rand(64, 3, 4, 4, generator=g)
    smooth = torch.nn.functional.interpolate(coarse, size=16, mode="bilinear")
    return (smooth + 0.02 * torch.randn(smooth.shape, generator=g)).clamp(0, 1)


def test_all_components_lose_nothing(images):
    codec = PatchPCA(4, 48).fit(images)
    torch.testing.assert_close(codec.decode(codec.encode(images)), images, atol=1e-5, rtol=0)
    assert codec.explained == pytest.approx(1.0)


def test_components_are_white_and_the_error_is_what_was_dropped(images):
    codec = PatchPCA(4, 12).fit(images)
    grid = codec.encode(images)
    assert grid.shape == (64, 12, 4, 4)
    rows = grid.permute(0, 2, 3, 1).reshape(-1, 12)
    torch.testing.assert_close(rows.T @ rows / len(rows), torch.eye(12), atol=1e-3, rtol=0)
    centred = images - PatchPCA(4, 12).decode(torch.zeros_like(grid)) - (codec.decode(torch.zeros_like(grid)))
    lost = (images - codec.decode(grid)).square().sum() / centred.square().sum()
    assert lost.item() == pytest.approx(1 - codec.explained, rel=1e-2)


def test_decode_then_encode_is_identity(images):
    codec = PatchPCA(4, 12).fit(images)
    grid = torch.randn(3, 12, 4, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(codec.encode(codec.decode(grid)), grid, atol=1e-3, rtol=1e-3)


def test_round_trip_through_a_folder(images, tmp_path):
    codec = PatchPCA(4, 12).fit(images)
    codec.save(tmp_path)
    torch.testing.assert_close(PatchPCA.load(tmp_path).encode(images), codec.encode(images))


def test_wrong_input():
    with pytest.raises(OutskirtsError, match="1 to 48"):
        PatchPCA(4, 49)
    with pytest.raises(OutskirtsError, match="do not divide"):
        PatchPCA(4, 4).encode(torch.zeros(1, 3, 10, 10))
    with pytest.raises(OutskirtsError, match="fewer components"):
        PatchPCA(2, 4).fit(torch.full((4, 3, 4, 4), 0.5))
