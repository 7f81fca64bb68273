"""The feed of unlabelled images: crops against torchvision's own, and what takes the place of a bad image."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from models.encoders.preprocessing import Preprocessing
from pipeline.data.decode import decode_image
from pipeline.data.decoding_options import DecodingOptions
from pipeline.data.labelled_images import seeded
from pipeline.data.share import Share
from pipeline.data.source_options import ImageSourceOptions
from pipeline.data.sources.kinds import open_source
from pipeline.data.square_crops import RandomSquare, SquareCrops
from pipeline.engine.errors import PipelineError
from pipeline.engine.settings import Settings
from storage.image_index import ImageIndex
from tests.builds import make_photos

SQUARE = Preprocessing(32, (0.5,) * 3, (0.5,) * 3)


def feed_of(photos: Path, folder: Path, **settings: object) -> SquareCrops:
    source = open_source(ImageSourceOptions(path=str(photos)))
    scan = source.scan()
    index = ImageIndex.build(scan.table, classes=scan.classes, source_kind="folder", images_per_shard=8)
    return SquareCrops(
        index,
        source,
        train_rows=index.rows_of_split("train"),
        val_rows=index.rows_of_split("val"),
        preprocessing=SQUARE,
        augmentation=RandomSquare(32, 0.3, 0.5),
        decoding=DecodingOptions(),
        folder=folder,
        seed=0,
        settings=Settings(**{"device": "cpu", "workers": 0, **settings}),
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("photos") / "photos", train=4, val=2)


def test_a_random_square_is_torchvisions() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 130, 3), dtype=np.uint8))
    bicubic = transforms.InterpolationMode.BICUBIC
    crop = transforms.RandomResizedCrop(32, scale=(0.2, 1.0), interpolation=bicubic)
    theirs = transforms.Compose([crop, transforms.RandomHorizontalFlip(0.5)])
    for seed in range(8):
        with seeded(seed):
            expected = np.asarray(theirs(picture)).transpose(2, 0, 1)
        with seeded(seed):
            assert (RandomSquare(32, 0.2, 0.5)(picture) == expected).all()


def test_every_epoch_sees_other_crops_and_a_repeated_one_the_same(photos: Path, tmp_path: Path) -> None:
    feed, rows = feed_of(photos, tmp_path), np.array([5, 0, 3])
    first, again, other = (next(feed.training([Share(0, epoch, rows)])).inputs[0] for epoch in (0, 0, 1))
    assert (first.dtype, first.shape) == (torch.uint8, (3, 3, 32, 32))
    assert torch.equal(first, again)
    assert not (first == other).flatten(1).all(1).any()


def test_crops_depend_on_neither_workers_nor_what_shares_the_batch(photos: Path, tmp_path: Path) -> None:
    rows = np.array([5, 0, 3])
    [whole] = feed_of(photos, tmp_path).training([Share(0, 0, rows)])
    alone = feed_of(photos, tmp_path, workers=2).training(Share(0, 0, rows[i : i + 1]) for i in range(3))
    for place, batch in enumerate(alone):
        assert torch.equal(batch.inputs[0][0], whole.inputs[0][place])
        assert batch.inputs[1].tolist() == whole.inputs[1][place : place + 1].tolist()


def test_validation_sees_the_square_of_a_tokenizer(photos: Path, tmp_path: Path) -> None:
    feed = feed_of(photos, tmp_path)
    [batch] = feed.validation([feed.val_rows])
    for place, row in enumerate(feed.val_rows):
        data = (photos / feed.index.name(int(row))).read_bytes()
        seen = decode_image(data, SQUARE, preset="exact", max_pixels=10**6).pixels
        assert seen is not None
        assert (batch.inputs[0][place].numpy() == seen).all()


def test_the_next_good_image_of_the_split_takes_the_place_of_a_bad_one(photos: Path, tmp_path: Path) -> None:
    copied = make_photos(tmp_path / "photos", train=4, val=2)
    bad = [copied / f"train/roof/000{number}.jpg" for number in (2, 3)]  # the last two of the split: round to the first
    for path in bad:
        path.write_bytes(b"")
    feed = feed_of(copied, tmp_path)
    [batch] = feed.validation([np.array([6, 7, 0])])
    assert torch.equal(batch.inputs[0][0], batch.inputs[0][2])
    assert torch.equal(batch.inputs[0][1], batch.inputs[0][2])
    assert len((tmp_path / "bad_images.jsonl").read_text().splitlines()) == 2


def test_a_split_without_a_good_image_is_refused(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", train=2, val=1)
    for path in (photos / "val").rglob("*.jpg"):
        path.write_bytes(b"no image")
    feed = feed_of(photos, tmp_path)
    with pytest.raises(PipelineError, match="no other image of its split can be decoded"):
        list(feed.validation([feed.val_rows]))
