"""Images with label maps: reading ADE20K's layout, the transforms of training and evaluation, and the metrics."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from models.heads import segmenter
from pipeline.data.normalisation import Normalisation
from pipeline.data.segmentation_images import IGNORED, SegmentationImages, SegmentedImage, require_clear_zero
from pipeline.data.segmentation_options import SegmentationTransformOptions
from pipeline.data.segmentation_transforms import (
    choose_cut,
    distort_colours,
    evaluation_pixels,
    scaled_size,
    training_sample,
)
from pipeline.engine.errors import PipelineError
from pipeline.stages.evaluate.segmentation import without_padding
from pipeline.stages.evaluate.segmentation_metrics import confusion_matrix, segmentation_metrics

CLASSES = 4
SMALL = SegmentationTransformOptions(short_side=64, long_side=256)


def write_pair(root: Path, name: str, labels: NDArray[np.uint8], *, mode: str = "L", folder: str = "training") -> None:
    for kind in ("images", "annotations"):
        (root / kind / folder).mkdir(parents=True, exist_ok=True)
    pixels = np.repeat(labels[:, :, None] * np.uint8(10), 3, axis=2)
    Image.fromarray(pixels).save(root / "images" / folder / f"{name}.jpg", quality=100)
    annotation = Image.fromarray(labels)
    if mode == "P":
        annotation.putpalette(list(range(255, -1, -1)) * 3)
    annotation.convert(mode).save(root / "annotations" / folder / f"{name}.png")


def labels_of(height: int, width: int) -> NDArray[np.uint8]:
    return (np.arange(height * width) % (CLASSES + 1)).astype(np.uint8).reshape(height, width)


def coloured(height: int = 60, width: int = 80) -> SegmentedImage:
    """Draw nine areas of a class each; red is 50 times the class. One is unlabelled, and red 250."""
    areas = np.array([[0, 1, 2], [3, 255, 0], [2, 1, 3]], dtype=np.uint8)
    labels = areas[np.arange(height)[:, None] * 3 // height, np.arange(width)[None] * 3 // width]
    red = np.where(labels == 255, 250, labels * 50).astype(np.uint8)
    return SegmentedImage("coloured", np.stack([red, red // 2, 255 - red], axis=2), labels)


def test_other_becomes_255_and_classes_count_from_0(tmp_path: Path) -> None:
    write_pair(tmp_path, "b", np.array([[0, 1], [2, CLASSES]], dtype=np.uint8))

    image = SegmentationImages.scan(tmp_path, "train", classes=CLASSES).read(0)

    assert image.labels.tolist() == [[255, 0], [1, CLASSES - 1]]
    assert image.labels.dtype == np.uint8
    assert image.pixels.shape == (2, 2, 3)


def test_the_label_that_the_data_leave_out_is_the_one_that_the_loss_leaves_out() -> None:
    assert IGNORED == segmenter.IGNORED == 255


def test_pairs_are_listed_by_name_whatever_the_split_and_palettes_are_not_applied(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        write_pair(tmp_path, name, labels_of(4, 6), mode="P", folder="validation")

    images = SegmentationImages.scan(tmp_path, "val", classes=CLASSES)

    assert images.names == ("a.jpg", "b.jpg", "c.jpg")
    assert len(images) == 3
    assert np.array_equal(images.read(1).labels, labels_of(4, 6) - np.uint8(1))


def test_hidden_files_are_no_pairs(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", labels_of(4, 6))
    for path in ("images/training/._a.jpg", "annotations/training/._a.png", "images/training/.DS_Store"):
        (tmp_path / path).write_bytes(b"Mac OS X")

    images = SegmentationImages.scan(tmp_path, "train", classes=CLASSES)

    assert images.names == ("a.jpg",)
    assert [name for name, _ in images.file_sizes()] == ["images/training/a.jpg", "annotations/training/a.png"]


def test_images_of_any_format_are_pairs_and_deep_gray_is_scaled(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", labels_of(4, 6))
    (tmp_path / "images/training/a.jpg").unlink()
    ramp = np.linspace(0, 65535, 24).reshape(4, 6).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "images/training/a.tif")

    pixels = SegmentationImages.scan(tmp_path, "train", classes=CLASSES).read(0).pixels

    assert np.abs(pixels[..., 0].astype(int) - ramp / 257).max() <= 1


def test_labels_may_count_from_0_with_255_for_other(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", np.array([[0, 1], [255, CLASSES - 1]], dtype=np.uint8))

    with pytest.raises(PipelineError, match=r"label 255, .*if 0 is a class, segmentation\.label_zero=class"):
        SegmentationImages.scan(tmp_path, "train", classes=CLASSES).read(0)
    image = SegmentationImages.scan(tmp_path, "train", classes=CLASSES, label_zero="class").read(0)

    assert image.labels.tolist() == [[0, 1], [255, CLASSES - 1]]


def test_a_label_beyond_those_that_count_from_0_is_refused(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", np.array([[0, CLASSES]], dtype=np.uint8))

    with pytest.raises(PipelineError, match=r"label 4, expected 0 \(the first class\) to 3, or 255"):
        SegmentationImages.scan(tmp_path, "train", classes=CLASSES, label_zero="class").read(0)


@pytest.mark.parametrize(
    ("labels", "is_clear"),
    [
        ([[0, 3], [1, 2]], False),  # all four classes, or three and "other"
        ([[0, 4], [1, 2]], True),  # the last class occurs
        ([[1, 3], [1, 2]], True),  # nothing is 0
        ([[0, 2], [1, 2]], True),  # a class is missing however they are counted
    ],
)
def test_labels_that_may_count_from_0_or_from_1_are_asked_about(
    labels: list[list[int]], is_clear: bool, tmp_path: Path
) -> None:
    write_pair(tmp_path, "a", np.array([[1, 2], [1, 1]], dtype=np.uint8))
    write_pair(tmp_path, "b", np.array(labels, dtype=np.uint8))
    images = SegmentationImages.scan(tmp_path, "train", classes=CLASSES)

    if is_clear:
        return require_clear_zero([images])
    with pytest.raises(PipelineError, match=r"label_zero=other\), or 0 is .* \(segmentation\.label_zero=class\)"):
        require_clear_zero([images])
    return None


def _without_annotation(root: Path) -> None:
    (root / "annotations/training/b.png").unlink()


def _without_image(root: Path) -> None:
    (root / "images/training/b.jpg").unlink()


def _without_folder(root: Path) -> None:
    (root / "annotations").rename(root / "labels")


def _twice(root: Path) -> None:
    Image.new("RGB", (6, 4)).save(root / "images/training/b.png")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without_annotation, r"images/training/b\.jpg: no annotation .*annotations/training/b\.png"),
        (_without_image, r"annotations/training/b\.png: no image of this name"),
        (_without_folder, r"annotations/training: no such folder"),
        (_twice, r"images/training/b\.\w+: another image has this name"),
    ],
)
def test_a_split_that_is_not_all_pairs_is_refused(tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    for name in ("a", "b"):
        write_pair(tmp_path, name, labels_of(4, 6))
    spoil(tmp_path)

    with pytest.raises(PipelineError, match=message):
        SegmentationImages.scan(tmp_path, "train", classes=CLASSES)


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (Image.new("L", (4, 6)), r"a\.png: 4 x 6 pixels, its image has 6 x 4"),
        (Image.new("L", (6, 4), CLASSES + 1), r"a\.png: label 5, expected 0 \(other\) to 4"),
        (Image.new("RGB", (6, 4)), r"a\.png: pixels of mode RGB"),
    ],
)
def test_an_annotation_that_does_not_fit_its_image_is_refused(
    tmp_path: Path, annotation: Image.Image, message: str
) -> None:
    write_pair(tmp_path, "a", labels_of(4, 6))
    annotation.save(tmp_path / "annotations/training/a.png")

    with pytest.raises(PipelineError, match=message):
        SegmentationImages.scan(tmp_path, "train", classes=CLASSES).read(0)


@pytest.mark.parametrize("keep", [0, 60])
def test_a_damaged_image_is_refused_by_name(tmp_path: Path, keep: int) -> None:
    write_pair(tmp_path, "a", labels_of(40, 60))
    path = tmp_path / "images/training/a.jpg"
    path.write_bytes(path.read_bytes()[: keep * path.stat().st_size // 100])

    with pytest.raises(PipelineError, match=r"a\.jpg: .*restore the file"):
        SegmentationImages.scan(tmp_path, "train", classes=CLASSES).read(0)


@pytest.mark.parametrize("seed", range(8))
def test_labels_stay_with_their_pixels_in_images_scaled_cut_mirrored_and_padded(seed: int) -> None:
    options = SMALL.model_copy(update={"distortion": 0.0})

    sample = training_sample(coloured(), options, crop=64, rng=np.random.default_rng(seed))

    red = sample.pixels[0].float()
    inside = sample.pixels[2] > 0  # blue is at least 5 in the image and 0 beyond it
    meant = torch.where(red > 225, 255, (red / 50).round().long())
    labels = sample.labels.float()[None, None]
    around = F.max_pool2d(labels, 3, 1, 1), -F.max_pool2d(-labels, 3, 1, 1)
    pure = (around[0] == around[1])[0, 0] & inside  # where areas meet, colours mix
    assert pure.float().mean() > 0.5 * inside.float().mean()
    assert torch.equal(meant[pure], sample.labels[pure].long())
    assert (sample.labels[~inside] == 255).all()
    assert set(sample.labels.unique().tolist()) <= {0, 1, 2, 3, 255}


def test_an_image_is_mirrored_half_of_the_time_together_with_its_labels() -> None:
    fixed = {"distortion": 0.0, "smallest_scale": 1.0, "largest_scale": 1.0, "short_side": 60, "long_side": 80}
    options, image = SMALL.model_copy(update=fixed), coloured()
    mirrored = 0
    for seed in range(40):
        sample = training_sample(image, options, crop=80, rng=np.random.default_rng(seed))
        pixels = sample.pixels[:, :60].permute(1, 2, 0).numpy()
        flipped = sample.labels[0, 0] == 2
        assert np.array_equal(pixels, image.pixels[:, ::-1] if flipped else image.pixels)
        assert np.array_equal(sample.labels[:60], image.labels[:, ::-1] if flipped else image.labels)
        mirrored += int(flipped)

    assert 10 <= mirrored <= 30


def test_what_lies_outside_the_image_is_the_mean_colour_and_has_no_class() -> None:
    options = SegmentationTransformOptions(short_side=16, long_side=64, smallest_scale=1.0, largest_scale=1.0)

    sample = training_sample(coloured(48, 60), options, crop=32, rng=np.random.default_rng(1))

    assert (sample.height, sample.width) == (16, 20)
    sizes = torch.tensor([[sample.height, sample.width]])
    [seen] = without_padding(Normalisation()(sample.pixels[None]), sizes)
    assert seen.shape == (3, 32, 32)
    assert not seen[:, 16:].any()
    assert not seen[:, :, 20:].any()
    assert seen[:, :16, :20].all()
    assert (sample.labels[16:] == 255).all()
    assert (sample.labels[:, 20:] == 255).all()
    assert (sample.labels[:16, :20] != 255).any()


def test_a_generator_decides_everything_and_nothing_else_is_drawn_from() -> None:
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    image = coloured()
    original = image.pixels.copy(), image.labels.copy()

    first, again, other = (
        training_sample(image, SMALL, crop=32, rng=np.random.default_rng(seed)) for seed in (3, 3, 4)
    )

    assert torch.equal(first.pixels, again.pixels)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.pixels, other.pixels)
    assert np.array_equal(np.random.get_state()[1], before[0])
    assert torch.equal(torch.get_rng_state(), before[1])
    assert np.array_equal(image.pixels, original[0])
    assert np.array_equal(image.labels, original[1])


def test_a_cut_is_drawn_again_while_one_class_fills_it() -> None:
    labels = np.zeros((100, 100), dtype=np.uint8)
    labels[:, 30:60] = 1
    labels[:, 60:] = 255  # does not count: a cut of one class and unlabelled pixels is one of one class

    def kept(limit: float) -> float:
        """Return the share of cuts whose largest class has less than three quarters of what is labelled."""
        cuts = [labels[choose_cut(labels, 30, limit, np.random.default_rng(seed))] for seed in range(100)]
        counts = np.array([np.bincount(cut.ravel(), minlength=256)[:255] for cut in cuts])
        return float(np.mean(counts.max(axis=1) < 0.75 * counts.sum(axis=1)))

    assert kept(0.75) > 0.8
    assert kept(1.0) < 0.65


def test_the_last_of_eleven_cuts_is_taken_as_it_is() -> None:
    rows, columns = choose_cut(np.zeros((40, 50), dtype=np.uint8), 32, 0.75, np.random.default_rng(0))

    assert (rows.stop - rows.start, columns.stop - columns.start) == (32, 32)


def test_colours_are_distorted_within_the_recipe_s_bounds() -> None:
    gray = np.full((4, 4, 3), 100, dtype=np.uint8)
    recipe = SegmentationTransformOptions()
    seen = [distort_colours(gray, recipe, np.random.default_rng(seed)) for seed in range(300, 1300)]

    values = np.array([image[0, 0, 0] for image in seen])
    assert all((image == image[0, 0, 0]).all() for image in seen)  # gray has neither hue nor saturation
    assert values.min() < 50
    assert values.min() >= round(0.5 * (100 - 32))
    assert values.max() > 160
    assert values.max() <= round(1.5 * (100 + 32))
    assert 0.2 < np.mean(values == 100) < 0.3  # neither brightness nor contrast: a quarter


def test_hue_turns_red_by_at_most_36_degrees_and_keeps_its_brightness() -> None:
    red = np.full((1, 1, 3), (255, 0, 0), dtype=np.uint8)
    only_hue = SegmentationTransformOptions(brightness=0, contrast=0, saturation=0, distortion=1.0)

    turned = np.array([distort_colours(red, only_hue, np.random.default_rng(seed))[0, 0] for seed in range(200)])

    assert (turned[:, 0] == 255).all()
    assert (turned[:, 1:].min(axis=1) == 0).all()
    assert 140 < turned[:, 1].max() <= 255 * 36 / 60 + 3
    assert 140 < turned[:, 2].max() <= 255 * 36 / 60 + 3


@pytest.mark.parametrize(
    ("size", "expected"),
    [((683, 512), (683, 512)), ((300, 400), (512, 683)), ((100, 1000), (205, 2048)), ((2048, 1536), (683, 512))],
)
def test_the_short_side_becomes_512_unless_the_long_one_would_exceed_2048(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert scaled_size(size, short_side=512, long_side=2048) == expected


def test_an_evaluated_image_is_scaled_whole() -> None:
    image = coloured(30, 50)

    pixels = evaluation_pixels(image, SegmentationTransformOptions(short_side=60, long_side=1000))

    assert pixels.shape == (3, 60, 100)
    assert pixels[:, 0, 0].tolist() == image.pixels[0, 0].tolist()


def test_normalisation_is_of_shares_of_255_per_colour() -> None:
    [seen] = Normalisation()(torch.tensor([255, 0, 51], dtype=torch.uint8)[None, :, None, None])

    assert seen.flatten().tolist() == pytest.approx([(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225])


def test_metrics_of_a_hand_computed_example() -> None:
    """Class 0: 2 right of 2 labelled and 3 predicted. 1: 1 of 3 and 1. 2: not labelled, predicted once. 3: neither."""
    labels = torch.tensor([0, 0, 1, 1, 255, 255], dtype=torch.uint8)
    predicted = torch.tensor([0, 0, 1, 0, 3, 3])
    extra = confusion_matrix(torch.tensor([2]), torch.tensor([1], dtype=torch.uint8), classes=4)

    metrics = segmentation_metrics(confusion_matrix(predicted, labels, classes=4) + extra)

    assert metrics.class_iou[:3].tolist() == pytest.approx([2 / 3, 1 / 3, 0])
    assert metrics.class_iou[3].isnan()
    assert metrics.mean_iou == pytest.approx((2 / 3 + 1 / 3 + 0) / 3)
    assert metrics.pixel_accuracy == pytest.approx(3 / 5)


def test_metrics_agree_with_torchmetrics_over_several_batches() -> None:
    random = torch.Generator().manual_seed(4)
    per_class = MulticlassJaccardIndex(6, average="none", ignore_index=255)
    mean = MulticlassJaccardIndex(6, average="macro", ignore_index=255)
    accuracy = MulticlassAccuracy(6, average="micro", ignore_index=255)
    total = torch.zeros(6, 6, dtype=torch.int64)
    for _ in range(3):
        labels = torch.randint(5, (2, 9, 7), generator=random)  # class 5 is neither labelled nor predicted
        predicted = torch.where(torch.rand(labels.shape, generator=random) < 0.6, labels, (labels + 1) % 5)
        labels[:, :2] = 255
        total += confusion_matrix(predicted, labels.to(torch.uint8), classes=6)
        for metric in (per_class, mean, accuracy):
            metric.update(predicted, labels)

    ours = segmentation_metrics(total)

    torch.testing.assert_close(ours.class_iou[:5].float(), per_class.compute()[:5])
    assert ours.mean_iou == pytest.approx(mean.compute().item(), abs=1e-6)
    assert ours.pixel_accuracy == pytest.approx(accuracy.compute().item(), abs=1e-6)


def test_a_label_beyond_the_classes_and_an_empty_matrix_are_refused() -> None:
    with pytest.raises(PipelineError, match="not in 0 to 2"):
        confusion_matrix(torch.tensor([0, 0]), torch.tensor([1, 3]), classes=3)
    with pytest.raises(PipelineError, match="no pixel has a class"):
        segmentation_metrics(torch.zeros(3, 3, dtype=torch.int64))
