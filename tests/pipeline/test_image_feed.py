"""Kept squares feed what decoding feeds, to the bit: shuffled epochs, validation, shares of processes, resumed runs."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.vit.options import BackboneOptions
from pipeline.data.decoding_options import DecodePreset
from pipeline.data.labelled_images import LabelledImages, choose_labelled
from pipeline.data.share import Share
from pipeline.data.sources.base import ImageReader, ImageSource, Scan
from pipeline.data.sources.kinds import open_source
from pipeline.data.token_images import TokenImages
from pipeline.data.token_rows import choose_rows, open_tokens
from pipeline.engine.batches import Batch, put_together
from pipeline.engine.settings import Settings
from pipeline.stages.evaluate.evaluation_options import FrozenFeaturesOptions
from pipeline.stages.evaluate.protocol import EvaluationJob, centre_crop, random_crop
from pipeline.stages.evaluate.subject import Subject
from pipeline.training.options import TrainingOptions
from pipeline.training.plan import StepPlan
from pipeline.training.token_prediction import pretraining_square
from storage.errors import StorageError
from storage.image_index import ImageIndex
from storage.square_store import SquareStore
from tests.squares import BAD, squares_of
from tests.stages import TokenizedImages

SIDE = 64
PLAN = TrainingOptions(epochs=2, batch_size=24, warmup_epochs=0)
Kept = dict[DecodePreset, SquareStore]


@dataclass(frozen=True)
class NoSource:
    """Images that nobody is to open."""

    def scan(self) -> Scan:
        raise AssertionError("not needed here")

    def reader(self) -> ImageReader:
        raise AssertionError("an image was opened")


@pytest.fixture(scope="module")
def kept(tokenized: TokenizedImages, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """The squares of all images but one, by how they were decoded."""
    folder, presets = tmp_path_factory.mktemp("kept"), ("exact", "fast")
    return {preset: squares_of(tokenized, folder / preset, SIDE, preset) for preset in presets}  # type: ignore[misc]


def token_images(
    built: TokenizedImages, preset: DecodePreset, squares: SquareStore | None, **machine: int
) -> TokenImages:
    index, store = ImageIndex.read(built.images.path), open_tokens(built.tokens, built.images)
    return TokenImages(
        index,
        open_source(built.source) if squares is None else NoSource(),
        store.load(),
        choose_rows(index, store, train="train", val="val"),
        preprocessing=pretraining_square(SIDE),
        decoding=preset,
        seed=0,
        settings=Settings(device="cpu", **machine),  # type: ignore[arg-type]
        squares=squares,
    )


def require_same(ours: Iterable[Batch], expected: Iterable[Batch]) -> None:
    """Compare batches; each is put together from pieces of whatever size."""
    pairs = list(zip(put_together(ours), put_together(expected), strict=True))
    assert pairs
    for one, other in pairs:
        assert one.rows.tolist() == other.rows.tolist()
        for left, right in zip(one.inputs, other.inputs, strict=True):
            assert left.dtype == right.dtype
            assert torch.equal(left, right)


@pytest.mark.parametrize("preset", ["exact", "fast"])
@pytest.mark.parametrize("machine", [{"workers": 0}, {"workers": 3}, {"workers": 3, "processes": 1024}])
def test_a_training_on_kept_squares_sees_what_one_that_decodes_does(
    machine: dict[str, int], preset: DecodePreset, tokenized: TokenizedImages, kept: Kept
) -> None:
    """Two shuffled epochs; alone, as one of three processes, and going on in the middle of an epoch. Where many
    processes train, a batch is in pieces."""
    decoding = token_images(tokenized, preset, None, workers=0)
    reading = token_images(tokenized, preset, kept[preset], **machine)
    plan = StepPlan(reading.train_rows[reading.train_rows != BAD], PLAN, seed=0)
    for step, rank, processes in ((0, 0, 1), (0, 1, 3), (plan.steps_per_epoch + 1, 2, 3)):
        ours, theirs = (plan.shares(step, process=rank, processes=processes) for _ in range(2))
        require_same(reading.training(ours), decoding.training(theirs))


@pytest.mark.parametrize("workers", [0, 3])
def test_a_validation_on_kept_squares_sees_what_one_that_decodes_does(
    workers: int, tokenized: TokenizedImages, kept: Kept
) -> None:
    reading, decoding = (token_images(tokenized, "fast", squares, workers=workers) for squares in (kept["fast"], None))
    groups = [decoding.val_rows[:5], decoding.val_rows[5:]]
    require_same(reading.validation(groups), decoding.validation(groups))


def labelled(built: TokenizedImages, source: ImageSource, squares: SquareStore | None) -> LabelledImages:
    index = ImageIndex.read(built.images.path)
    return LabelledImages(
        index,
        source,
        choose_labelled(index, train="train", val="val"),
        train_transform=random_crop(SIDE, 0.3, 0.5),
        val_transform=centre_crop(SIDE, 1.0),
        image_size=SIDE,
        seed=0,
        settings=Settings(device="cpu", workers=2),
        squares=squares,
    )


def test_judging_and_features_of_whole_central_squares_are_read(tokenized: TokenizedImages, kept: Kept) -> None:
    """Of which timm's evaluation transform makes what `exact` does."""
    reading = labelled(tokenized, NoSource(), kept["exact"])
    decoding = labelled(tokenized, open_source(tokenized.source), None)
    rows = np.concatenate([decoding.train_rows[decoding.train_rows != BAD], decoding.val_rows])
    groups = [rows[:40], rows[40:]]
    require_same(reading.validation(groups), decoding.validation(groups))


@pytest.mark.parametrize(
    ("crop_pct", "size", "read"), [(1.0, SIDE, True), (0.875, SIDE, False), (1.0, 2 * SIDE, False)]
)
def test_an_evaluation_reads_kept_squares_where_they_are_what_it_looks_at(
    crop_pct: float, size: int, read: bool, tokenized: TokenizedImages, kept: Kept, tmp_path: Path
) -> None:
    job = EvaluationJob(
        options=FrozenFeaturesOptions(),
        subject=Subject(BackboneOptions(name="vit_demo", image_size=size), None),
        images=tokenized.images,
        source=tokenized.source,
        tokens=tokenized.tokens,
        folder=tmp_path,
        settings=Settings(device="cpu", workers=0),
        squares=kept["exact"].folder,
    )
    feeds = [
        one.feed(one.splits(), train=centre_crop(size, crop_pct), crop_pct=crop_pct)
        for one in (job, replace(job, squares=None))
    ]
    assert [feed.is_copied(training=False) for feed in feeds] == [read, False]
    require_same(*(feed.validation([feed.val_rows]) for feed in feeds))


def test_random_crops_are_decoded_beside_kept_squares(tokenized: TokenizedImages, kept: Kept) -> None:
    feeds = [labelled(tokenized, open_source(tokenized.source), squares) for squares in (kept["exact"], None)]
    ours, theirs = (feed.training([Share(0, 0, feed.train_rows[:9])]) for feed in feeds)
    require_same(ours, theirs)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_row_without_a_square_is_an_error_that_names_it(workers: int, tokenized: TokenizedImages, kept: Kept) -> None:
    reading = token_images(tokenized, "fast", kept["fast"], workers=workers)
    with pytest.raises(StorageError, match=f"row {BAD}"):
        list(reading.training([Share(0, 0, np.array([3, BAD, 4]))]))
