"""The segmentation protocol on the demo's digits: learned, judged, killed and resumed, spread over processes."""

import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from benchmarks.gpu_check.training import Silence
from models.vit.backbones import build_backbone
from models.vit.trunk import drop_path_rates
from models.weights.timm_files import save_backbone
from pipeline.data.demo_images import CLASS_FOLDERS, DemoSources, render_by_name
from pipeline.data.demo_segmentation import CLASSES, chosen_names
from pipeline.data.normalisation import Normalisation
from pipeline.data.segmentation_feed import SegmentationFeed
from pipeline.data.segmentation_images import SegmentationImages
from pipeline.data.segmentation_options import SegmentationTransformOptions
from pipeline.engine.errors import PipelineError
from pipeline.engine.processes import Processes
from pipeline.engine.settings import Settings
from pipeline.engine.tracker import NoTracking
from pipeline.engine.workspace import Workspace
from pipeline.stages.evaluate.protocol import EvaluationJob
from pipeline.stages.evaluate.scores import read_scores, score_of_sums
from pipeline.stages.evaluate.segmentation import SegmentationOptions, build_segmenter, judge_whole_images, segmentation
from pipeline.stages.evaluate.segmented_images import identified_files, segmentation_identity
from pipeline.stages.evaluate.subject import Subject
from pipeline.training.history import HISTORY, read_history
from pipeline.training.launch import train_together
from pipeline.training.loop import Reporter
from storage.artifact import Artifact
from tests.forked import call, start
from tests.pipeline.segmentations import BACKBONE, COUNTS, CPU, DRAWING, job_of, run, small_options
from tests.stages import make_demo_segmentation


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    workspace = Workspace(Settings(data_root=tmp_path_factory.mktemp("demo"), device="cpu"), NoTracking())
    return make_demo_segmentation(COUNTS, drawing=DRAWING, workspace=workspace).artifact


def few_pairs(demo: Artifact, folder: Path, count: int) -> Path:
    """Return the first training pairs, to train on and to judge."""
    images = SegmentationImages.scan(demo.path, "train", classes=CLASSES)
    for kind in ("images", "annotations"):
        for split in ("training", "validation"):
            (folder / kind / split).mkdir(parents=True)
            for name in images.names[:count]:
                shutil.copy(demo.path / kind / "training" / name, folder / kind / split / name)
    return folder


def test_uper_net_learns_a_few_images_by_heart(demo: Artifact, tmp_path: Path) -> None:
    root = few_pairs(demo, tmp_path / "few", 4)
    still = SegmentationTransformOptions(
        short_side=32, long_side=128, smallest_scale=1, largest_scale=1, flip=0, distortion=0, largest_class_share=1
    )
    options = small_options(root, steps=150, batch_size=4, peak_learning_rate=2e-2, validation_epochs=150)
    gentle = {"drop_path_rate": 0.0, "layer_decay": 1.0, "transforms": still}

    scores = run(options.model_copy(update=gentle), demo, tmp_path / "run")

    labels = [SegmentationImages.scan(root, "val", classes=CLASSES).read(row).labels for row in range(4)]
    background, classes = np.mean([each == 0 for each in labels]), len(np.unique(labels))
    assert background / classes < 0.25  # the mean IoU of calling everything background
    assert scores["miou"].value > 80
    assert scores["pixel_accuracy"].value > 95
    assert scores["miou"].low <= scores["miou"].value <= scores["miou"].high
    assert scores["miou"].images == 4


def test_what_is_written_tells_of_every_image_and_makes_up_the_score(demo: Artifact, tmp_path: Path) -> None:
    scores = run(small_options(demo.path, steps=2, warmup_steps=0), demo, tmp_path)

    with np.load(tmp_path / "correct.npz") as saved:
        right, labelled, predicted = (saved[name].astype(float) for name in ("right", "labelled", "predicted"))
    assert right.shape == (CLASSES, 10)
    assert (labelled.sum(0) == 32 * 32).all()
    assert (predicted.sum(0) == 32 * 32).all()
    total, union = right.sum(1), (labelled + predicted - right).sum(1)
    assert scores["miou"].value == pytest.approx(100 * np.mean(total[union > 0] / union[union > 0]), abs=1e-3)
    assert scores["pixel_accuracy"].value == pytest.approx(100 * right.sum() / labelled.sum(), abs=1e-3)
    assert list(scores) == ["miou", "pixel_accuracy"]
    assert scores["miou"].reading == "UperNet, one scale, windows of 32 pixels every 21"
    assert any("val_main_loss" in entry for entry in read_history(tmp_path))


def test_an_image_of_one_window_is_judged_by_one_look_at_it(demo: Artifact) -> None:
    options = small_options(demo.path)
    network = build_segmenter(Subject(BACKBONE, None), options).eval()
    splits = [SegmentationImages.scan(demo.path, split, classes=CLASSES) for split in ("train", "val")]
    feed = SegmentationFeed(*splits, options.transforms, crop=32, seed=0, settings=Settings(workers=0, device="cpu"))

    counts = judge_whole_images(network, feed, options, CPU)

    for row, image in zip(feed.val_rows, feed.whole_images(feed.val_rows), strict=True):
        pixels, labels = image.inputs
        found = network.predict(Normalisation()(pixels)).argmax(1)
        for label in range(CLASSES):
            right = ((found == label) & (labels == label)).sum()
            expected = [right, (labels == label).sum(), (found == label).sum()]
            assert counts[row - feed.val_rows[0], :, label].tolist() == expected


def test_a_pretrained_backbone_is_where_the_network_starts(demo: Artifact, tmp_path: Path) -> None:
    """At another image size than it was trained at, and with the protocol's own stochastic depth."""
    larger = BACKBONE.model_copy(update={"image_size": 64})
    trained = build_backbone(larger, seed=9)
    save_backbone(trained, larger, tmp_path, mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD)

    network = build_segmenter(Subject(larger, replace(demo, path=tmp_path)), small_options(demo.path))

    weights = network.backbone.state_dict()
    assert all(torch.equal(weights[name], own) for name, own in trained.state_dict().items() if name != "pos_embed")
    assert weights["pos_embed"].shape == (1, 1 + 16, 64)
    assert drop_path_rates(network.backbone)[-1] == pytest.approx((0.3, 0.3))


def test_a_segmentation_that_is_killed_goes_on_as_it_would_have(demo: Artifact, tmp_path: Path) -> None:
    options, settings = small_options(demo.path, steps=40), {"checkpoint_steps": 5, "micro_batch_size": 5}
    undisturbed = run(options, demo, tmp_path / "undisturbed", **settings)
    folder = tmp_path / "killed"
    process = start(tmp_path / "said", partial(run, options, demo, folder, **settings))
    process.wait_until(lambda: list(folder.glob("checkpoints/step-0000001*.json")))
    process.kill()
    assert not (folder / "scores.json").exists()

    assert run(options, demo, folder, **settings) == undisturbed
    for name in (HISTORY, "scores.json"):
        assert (folder / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()
    with np.load(folder / "correct.npz") as ours, np.load(tmp_path / "undisturbed/correct.npz") as theirs:
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def share_norms_and_train(job: EvaluationJob, processes: Processes, reporter: Reporter) -> dict[str, Any]:
    norm = nn.BatchNorm2d(2)
    norm.register_buffer("running_mean", torch.full((2,), 1.0 + processes.rank))
    processes.share_buffers(norm)
    return {**segmentation(job, processes, reporter), "means": processes.gather(norm.running_mean.tolist())}


def test_two_processes_judge_every_image_once_with_the_same_network(demo: Artifact, tmp_path: Path) -> None:
    job = job_of(small_options(demo.path, steps=3), demo, tmp_path, processes=2)

    work = partial(share_norms_and_train, job)
    notes = call(tmp_path / "said", train_together, work, job.settings, NoTracking(), what="segmentation")

    assert notes["means"] == [[1.0, 1.0], [1.0, 1.0]]
    assert {score.images for score in read_scores(tmp_path)} == {10}
    with np.load(tmp_path / "correct.npz") as saved:
        assert (saved["labelled"].sum(0) == 32 * 32).all()
    assert [entry["step"] for entry in read_history(tmp_path) if "loss" in entry] == [1, 2, 3]


@pytest.mark.parametrize(
    ("batch_size", "settings", "processes"),
    [(1, {}, 1), (8, {"micro_batch_size": 1}, 1), (5, {"micro_batch_size": 2}, 1), (3, {}, 2)],
)
def test_an_image_that_would_be_normalised_by_itself_is_refused(
    batch_size: int, settings: dict[str, int], processes: int, demo: Artifact, tmp_path: Path
) -> None:
    job = job_of(small_options(demo.path, batch_size=batch_size), demo, tmp_path, **settings)
    with pytest.raises(PipelineError, match=r"leaves an image by itself.*micro_batch_size"):
        segmentation(job, Processes(CPU.device, size=processes), Silence())


def test_a_loss_that_is_not_finite_stops_with_a_sentence(demo: Artifact, tmp_path: Path) -> None:
    exploding = small_options(demo.path, peak_learning_rate=1e30, first_learning_rate=1e-4)
    with pytest.raises(PipelineError, match=r"step \d+: the (loss|gradient) is not finite"):
        run(exploding, demo, tmp_path)


def test_windows_that_leave_pixels_out_and_missing_images_are_refused(demo: Artifact) -> None:
    with pytest.raises(ValueError, match="stride 513 leaves pixels out between windows of 512"):
        SegmentationOptions(stride=513)
    with pytest.raises(PipelineError, match=r"segmentation\.path is empty"):
        segmentation_identity(SegmentationOptions())
    with pytest.raises(PipelineError, match="no such folder"):
        segmentation_identity(SegmentationOptions(path=str(demo.path / "images")))


def test_the_identity_of_the_images_is_their_names_and_sizes(demo: Artifact, tmp_path: Path) -> None:
    root = few_pairs(demo, tmp_path / "here", 3)
    here, there = small_options(root), small_options(tmp_path / "there")
    shutil.copytree(root, tmp_path / "there")
    assert segmentation_identity(here) == segmentation_identity(there)

    annotation = next((tmp_path / "there/annotations/validation").iterdir())
    with annotation.open("ab") as file:
        file.write(b"\0")
    changed = segmentation_identity(there)
    assert changed != segmentation_identity(here)

    os.truncate(annotation, annotation.stat().st_size - 1)
    assert segmentation_identity(there) == segmentation_identity(here)
    for kind in ("images", "annotations"):
        (tmp_path / "there" / kind / "training" / annotation.name).rename(
            tmp_path / "there" / kind / "training/other.png"
        )
    assert segmentation_identity(there) not in {changed, segmentation_identity(here)}


def edit_annotation(root: Path) -> None:
    """Write other pixels in a file of the same size."""
    path = min((root / "annotations/training").iterdir())
    data = bytearray(path.read_bytes())
    data[-14] ^= 1  # in the checksum of the pixels
    path.write_bytes(data)


def test_an_annotation_edited_to_the_same_size_is_refused_or_counted(demo: Artifact, tmp_path: Path) -> None:
    root = few_pairs(demo, tmp_path / "few", 4)
    by_listing = small_options(root, steps=3, batch_size=4)
    by_content = by_listing.model_copy(update={"identity": "content"})
    settings = Settings(data_root=tmp_path / "root", device="cpu", workers=0)
    before = identified_files(by_content, settings.layout).identity
    assert before != identified_files(by_listing, settings.layout).identity
    (tmp_path / "run").mkdir()
    segmentation(job_of(by_listing, demo, tmp_path / "run", data_root=settings.data_root), CPU, Silence())
    edit_annotation(root)
    other = by_listing.model_copy(update={"seed": 1})
    with pytest.raises(PipelineError, match=r"annotations/training/.*bytes are not .*segmentation\.identity=content"):
        segmentation(job_of(other, demo, tmp_path / "run", data_root=settings.data_root), CPU, Silence())
    after = identified_files(by_content, settings.layout).identity
    assert after != before
    copy = shutil.copytree(root, tmp_path / "copy")
    there = by_content.model_copy(update={"path": str(copy)})
    assert identified_files(there, settings.layout).identity == after


def test_training_squares_depend_on_seed_epoch_and_image_alone(demo: Artifact) -> None:
    options = small_options(demo.path)
    splits = [SegmentationImages.scan(demo.path, split, classes=CLASSES) for split in ("train", "val")]
    feed = SegmentationFeed(*splits, options.transforms, crop=32, seed=0, settings=Settings(workers=0, device="cpu"))
    seeds, rows = torch.tensor([5, -7, 2**62]), np.array([0, 3, 19])

    whole = feed.load_rows(rows, seeds, training=True)
    alone = feed.load_rows(rows[1:2], seeds[1:2], training=True)
    other = feed.load_rows(rows, seeds + 1, training=True)

    assert [tuple(tensor.shape) for tensor in whole] == [(3, 3, 32, 32), (3, 32, 32), (3,), (3, 2)]
    assert [tensor.dtype for tensor in whole[:2]] == [torch.uint8, torch.uint8]
    assert sum(tensor.nbytes for tensor in whole) <= len(rows) * (feed.image_bytes + 24)  # seed and size
    assert torch.equal(whole[0][1:2], alone[0])
    assert torch.equal(whole[1][1:2], alone[1])
    assert not torch.equal(whole[0], other[0])


def test_validation_squares_are_the_middle_of_validation_images(demo: Artifact) -> None:
    options = small_options(demo.path)
    splits = [SegmentationImages.scan(demo.path, split, classes=CLASSES) for split in ("train", "val")]
    feed = SegmentationFeed(*splits, options.transforms, crop=24, seed=0, settings=Settings(workers=0, device="cpu"))
    assert len(feed.train_rows) == 20

    [batch] = feed.validation([feed.val_rows[:2]])

    expected = [splits[1].read(row).labels[4:28, 4:28] for row in (0, 1)]
    assert np.array_equal(batch.inputs[1].numpy(), np.stack(expected))


@pytest.mark.parametrize(("split", "folder"), [("train", "training"), ("val", "validation")])
def test_demo_masks_are_the_alpha_that_drew_the_images(split: str, folder: str, demo: Artifact) -> None:
    sources = DemoSources.load()
    names = chosen_names(sources, DRAWING, split, demo.summary[f"{split}_images"])  # type: ignore[arg-type]
    digits = [CLASS_FOLDERS.index(name.split("/")[1]) for name in names]
    assert set(np.bincount(digits)) == {len(names) // 10}
    for name, digit in zip(names, digits, strict=True):
        drawn, file = render_by_name(sources, name, DRAWING), name.split("/")[-1]
        with Image.open(demo.path / "images" / folder / file) as image:
            assert np.array_equal(np.array(image), drawn.pixels)
        with Image.open(demo.path / "annotations" / folder / file) as image:
            labels = np.array(image)
        assert np.array_equal(labels == 2 + digit, drawn.alpha > 0.5)
        assert np.array_equal(labels == 1, drawn.alpha <= 0.5)


def test_more_label_maps_than_digits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="2000 train images with label maps, but 1297 digits are drawn"):
        chosen_names(DemoSources.load(), DRAWING, "train", 2000)


def share(counts: np.ndarray) -> float:
    return float(counts[0] / counts[1])


def test_an_interval_over_images_knows_only_how_images_differ() -> None:
    alike = score_of_sums("share", np.tile([3, 4], (50, 1)), share, "")
    assert (alike.low, alike.value, alike.high, alike.images) == (75, 75, 75, 50)


def test_an_interval_over_images_is_that_of_the_mean_where_images_weigh_alike() -> None:
    """Of 400 images with or without, a quarter with: standard error sqrt(.25 * .75 / 400) = 2.165 %."""
    right = np.arange(400) % 4 == 0
    score = score_of_sums("share", np.stack([right, np.ones(400)], axis=1), share, "")
    assert score.value == 25
    assert score.low == pytest.approx(25 - 1.96 * 2.165, abs=0.4)
    assert score.high == pytest.approx(25 + 1.96 * 2.165, abs=0.4)


def test_images_weigh_as_much_as_they_count() -> None:
    score = score_of_sums("share", np.array([[9, 10], [0, 90]]), share, "")
    assert score.value == 9
    assert (score.low, score.high) == (0, 90)  # twice the one or twice the other
