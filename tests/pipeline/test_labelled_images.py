"""Labelled images for a trainer: mixed, then erased, the same in whatever process they are loaded."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torchvision.transforms import functional

from pipeline.data.labelled_images import LabelledImages, choose_labelled, seeded, with_noise
from pipeline.data.normalisation import Normalisation
from pipeline.data.share import Share
from pipeline.data.source_options import ImageSourceOptions
from pipeline.data.sources.kinds import open_source
from pipeline.engine.batches import Batch
from pipeline.engine.settings import Settings
from pipeline.stages.evaluate.evaluation_options import FineTuneOptions
from pipeline.stages.evaluate.fine_tune import erasing, mixing, train_transform
from pipeline.stages.evaluate.protocol import centre_crop
from pipeline.stages.index_images import index_of
from pipeline.training.options import TrainingOptions
from pipeline.training.plan import StepPlan

SIDE = 32


@pytest.fixture(scope="module")
def gray(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 images of one gray each, 4 of them to validate on, so that whatever differs within an image was erased."""
    folder = tmp_path_factory.mktemp("gray")
    for number in range(40):
        place = folder / ("val" if number >= 36 else "train") / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (6 * number,) * 3).save(place / f"{number:02}.png")
    return folder


def feed_of(folder: Path, *, repeats: int = 1, **options: object) -> LabelledImages:
    chosen = FineTuneOptions.model_validate({"auto_augment": "", **options})
    source = ImageSourceOptions(path=str(folder))
    index = index_of(open_source(source).scan(), source)
    return LabelledImages(
        index,
        open_source(source),
        choose_labelled(index, train="train", val="val"),
        train_transform=train_transform(chosen, SIDE),
        val_transform=centre_crop(SIDE, 1.0),
        mix=mixing(chosen, 2),
        erase=erasing(chosen),
        image_size=SIDE,
        seed=0,
        settings=Settings(device="cpu", workers=0),
        repeats=repeats,
    )


def is_erased(batch: Batch) -> Tensor:
    """Return bool [B], of what a learner sees. (CutMix leaves an image with two grays.)"""
    pixels, _, _, *erasure = batch.inputs
    images = Normalisation()(pixels)
    seen = with_noise(images, *erasure) if erasure else images
    return torch.tensor([len(image[0].unique()) > 2 for image in seen])


def test_a_quarter_of_the_images_has_an_erased_pixel(gray: Path) -> None:
    """24.9 % in the released code, 40.7 % where erased images are mixed into others."""
    feed = feed_of(gray)
    shares = (Share(epoch, epoch, feed.train_rows) for epoch in range(60))
    erased = torch.cat([is_erased(batch) for batch in feed.training(shares)])
    assert len(erased) == 60 * 36
    assert erased.float().mean().item() == pytest.approx(0.25, abs=0.03)


def test_what_is_erased_is_what_timm_erases_of_the_normalised_image(gray: Path) -> None:
    """To the bit, though pixels travel as 8 bits; also when the step is cut into pieces."""
    feed = feed_of(gray, erasing=0.7)
    [batch] = feed.training([Share(0, 0, feed.train_rows)])
    pixels, _, seeds, _, _ = batch.inputs
    expected, erase = Normalisation()(pixels), erasing(FineTuneOptions(erasing=0.7))
    assert erase is not None
    for image, seed in zip(expected, seeds.tolist(), strict=True):
        with seeded(~seed):
            erase(image)
    cut = [with_noise(Normalisation()(piece.inputs[0]), *piece.inputs[3:]) for piece in batch.split(5)]
    assert torch.equal(torch.cat(cut), expected)


@pytest.mark.parametrize("options", [{"erasing": 1.0}, {"erasing": 0.0}, {"erasing": 0.0, "mixup": 0.0, "cutmix": 0.0}])
def test_images_travel_as_8_bits_in_no_more_bytes_than_the_feed_says(options: dict[str, float], gray: Path) -> None:
    feed = feed_of(gray, **options)
    [batch] = feed.training([Share(0, 0, feed.train_rows)])
    assert batch.inputs[0].dtype == torch.uint8
    assert sum(tensor.nbytes for tensor in batch.inputs) <= len(batch) * (feed.image_bytes + 16)  # label and seed


def test_nothing_is_erased_or_mixed_in_validation(gray: Path) -> None:
    feed = feed_of(gray, erasing=1.0)
    [batch] = feed.validation([feed.val_rows])
    _, labels, _ = batch.inputs
    assert not is_erased(batch).any()
    assert labels.tolist() == feed.index.labels[feed.val_rows].tolist()


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("processes", [2, 3, 4])
def test_processes_load_the_pieces_of_what_one_alone_loads(processes: int, repeats: int, gray: Path) -> None:
    """Whose images are mixed with whose, and how, is the step's affair."""
    feed = feed_of(gray, repeats=repeats)
    training = TrainingOptions(epochs=2, batch_size=11, warmup_epochs=0)
    plan = StepPlan(feed.train_rows, training, seed=0, repeats=repeats)
    whole = list(feed.training(plan.shares(0)))
    parts = [list(feed.training(plan.shares(0, process=rank, processes=processes))) for rank in range(processes)]
    for step, batch in enumerate(whole):
        for place, wanted in enumerate(batch.inputs):
            assert torch.equal(torch.cat([part[step].inputs[place] for part in parts]), wanted)


def test_copies_of_an_image_are_augmented_differently(gray: Path) -> None:
    feed = feed_of(gray, repeats=3, mixup=0.0, cutmix=0.0, erasing=1.0)
    plan = StepPlan(feed.train_rows, TrainingOptions(epochs=1, batch_size=12, warmup_epochs=0), seed=0, repeats=3)
    batch = next(feed.training(plan.shares(0)))
    assert batch.rows[:4].tolist() == batch.rows[4:8].tolist() == batch.rows[8:].tolist()
    seeds, erased = batch.inputs[2], batch.inputs[3]
    assert len(seeds.unique()) == 12
    assert not any(torch.equal(erased[image], erased[image + 4]) for image in range(8))


def test_pixels_are_normalised_as_timm_does() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    theirs = functional.normalize(
        functional.to_tensor(picture), torch.tensor(IMAGENET_DEFAULT_MEAN), torch.tensor(IMAGENET_DEFAULT_STD)
    )
    assert torch.equal(Normalisation()(functional.pil_to_tensor(picture)[None])[0], theirs)
