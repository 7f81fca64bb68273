"""Raw patches: the pixels of a patch as its feature."""

import numpy as np
import pytest
import torch
from torch import Tensor

from models.encoders.options import RawPatchOptions
from models.encoders.raw_patches import RawPatchEncoder
from models.errors import ModelError
from models.tokenizers.kclip import KClipTokenizer

OPTIONS = RawPatchOptions(image_size=12, patch_size=4)


def images(count: int = 3) -> Tensor:
    return torch.randint(0, 256, (count, 3, 12, 12), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def test_a_feature_is_its_patch_by_channel_in_raster_order_from_minus_one_to_one() -> None:
    pixels, encoder = images(), RawPatchEncoder(OPTIONS)
    features = encoder(pixels)
    assert features.shape == (3, 9, 48)
    assert (encoder.grid, encoder.width) == ((3, 3), 48)
    patch = pixels[1, :, 4:8, 8:12].numpy()  # row 1, column 2 of the grid
    expected = (patch.reshape(-1) / 127.5 - 1).astype(np.float16)
    np.testing.assert_allclose(features[1, 5].numpy(), expected, atol=1e-3)


def test_a_patch_that_is_a_centroid_gets_its_token() -> None:
    pixels = images()
    encoder = RawPatchEncoder(OPTIONS)
    features = encoder(pixels).flatten(0, 1).float()
    tokens = KClipTokenizer(encoder, features, name="pixels")(pixels)
    assert tokens.flatten().tolist() == list(range(27))


def test_the_digest_tells_patch_sizes_apart() -> None:
    other = RawPatchOptions(image_size=12, patch_size=3)
    assert RawPatchEncoder(OPTIONS).digest == RawPatchEncoder(OPTIONS).digest
    assert RawPatchEncoder(OPTIONS).digest != RawPatchEncoder(other).digest


def test_an_image_that_is_no_whole_number_of_patches_is_refused() -> None:
    with pytest.raises(ModelError, match="image_size 12 is not a multiple of patch_size 5"):
        RawPatchEncoder(RawPatchOptions(image_size=12, patch_size=5))


def test_pixels_of_another_size_are_refused() -> None:
    with pytest.raises(ModelError, match=r"raw patches of 4 px: came torch.uint8 \[1, 3, 8, 8\]"):
        RawPatchEncoder(OPTIONS)(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
