"""Any mode of PIL becomes RGB, and no image comes out in one colour unless it has one."""

from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from models.encoders.preprocessing import Preprocessing
from pipeline.data.decode import decode_image
from pipeline.data.rgb import to_rgb
from storage.image_index import ImageStatus
from tests.pipeline.cases import picture

RAMP = np.linspace(0, 1, 32 * 32).reshape(32, 32)
LEVELS = np.rint(RAMP * 255)


def reopened(image: Image.Image, form: str = "TIFF", **options: object) -> Image.Image:
    file = BytesIO()
    image.save(file, form, **options)
    return Image.open(BytesIO(file.getvalue()))


def red(image: Image.Image) -> np.ndarray:
    return np.asarray(to_rgb(image))[..., 0].astype(int)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_gray_of_16_bits_keeps_its_brightness_in_every_format(form: str) -> None:
    deep = reopened(Image.fromarray((RAMP * 65535).astype(np.uint16)), form)
    assert np.abs(red(deep) - LEVELS).max() <= 1


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ((RAMP * 4095).astype(np.uint16), "12 bits in 16"),
        ((RAMP * 255).astype(np.uint16), "8 bits in 16"),
        ((RAMP * 65535).astype(np.int32), "16 bits in 32"),
        ((RAMP * 2**30).astype(np.int32), "more than 16 bits"),
        ((RAMP * 2000 - 1000).astype(np.int32), "with negative values"),
        (RAMP.astype(np.float32), "0 to 1"),
        ((RAMP * 255).astype(np.float32), "0 to 255"),
        ((RAMP * 65535).astype(np.float32), "16 bits as float"),
        ((RAMP * 1e30 - 5e29).astype(np.float32), "anything"),
    ],
)
def test_gray_of_other_ranges_is_scaled_by_the_range_that_holds_it(values: np.ndarray, what: str) -> None:
    assert np.abs(red(reopened(Image.fromarray(values))) - LEVELS).max() <= 1, what


def test_a_dark_image_stays_dark() -> None:
    assert red(reopened(Image.fromarray((RAMP * 6553).astype(np.uint16)))).max() == 25
    assert red(reopened(Image.fromarray((RAMP * 0.1).astype(np.float32)))).max() in (25, 26)


def test_a_tiff_in_which_0_is_white_is_turned_round() -> None:
    deep = Image.fromarray((RAMP * 65535).astype(np.uint16))
    assert np.abs(red(reopened(deep, tiffinfo={262: 0})) - (255 - LEVELS)).max() <= 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_damage_with_a_reason(value: float) -> None:
    file = BytesIO()
    Image.fromarray(np.where(RAMP > 0.5, value, RAMP).astype(np.float32)).save(file, "TIFF")
    small = Preprocessing(16, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    image = decode_image(file.getvalue(), small, preset="exact", max_pixels=10**6)
    assert (image.status, "no numbers" in image.reason) == (ImageStatus.DAMAGED, True)


DEEP = [(np.uint16, 0, 65535), (np.int32, -(2**31), 2**31 - 1)]


@given(
    st.sampled_from(DEEP).flatmap(
        lambda kind: arrays(kind[0], (2, 3), elements=st.integers(int(kind[1]), int(kind[2])))
    )
    | arrays(np.float32, (2, 3), elements=st.floats(allow_nan=False, allow_infinity=False, width=32))
)
def test_no_deep_gray_comes_out_constant_unless_it_is(values: np.ndarray) -> None:
    pixels = np.asarray(to_rgb(Image.fromarray(values)))
    assert (pixels.min() == pixels.max()) == (values.min() == values.max())


@pytest.mark.parametrize("preset", ["exact", "fast"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"])
def test_no_mode_of_pil_comes_out_in_one_colour(mode: str, preset: str) -> None:
    photo = picture(1, 64, 48)
    if mode == "LAB":
        lab = Image.merge("LAB", (photo.convert("L"), *(Image.new("L", photo.size, 128) for _ in range(2))))
        image = reopened(lab)
    else:
        made = photo.convert("L").convert(mode) if mode in ("I;16", "I", "F") else photo.convert(mode)
        image = made if mode in ("PA",) else reopened(made, "PNG" if mode in ("LA", "P") else "TIFF")
    assert np.asarray(to_rgb(image)).std() > 5, image.mode


@pytest.mark.parametrize(("ink", "shown"), [(0, [255, 0]), (255, [0, 255])])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_an_icon_that_only_transparency_draws_is_laid_on_the_other_colour(
    ink: int, shown: list[int], mode: str
) -> None:
    icon = Image.new("LA", (2, 1), (ink, 0))
    icon.putpixel((1, 0), (ink, 255))
    if mode == "P":
        palette = Image.new("P", (2, 1), 0)
        palette.putpalette([ink] * 6)
        palette.putpixel((1, 0), 1)
        icon = reopened(palette, "PNG", transparency=b"\x00\xff")
    assert red(icon.convert(mode) if mode != "P" else icon).tolist() == [shown]


def test_other_transparency_is_dropped_as_open_clip_does() -> None:
    image = picture(2).convert("RGBA")
    image.putalpha(7)
    assert np.array_equal(to_rgb(image), image.convert("RGB"))


def test_of_several_pages_the_first_counts() -> None:
    first, second = picture(3), picture(4)
    file = BytesIO()
    first.save(file, "TIFF", save_all=True, append_images=[second])
    assert np.array_equal(to_rgb(Image.open(BytesIO(file.getvalue()))), first)
