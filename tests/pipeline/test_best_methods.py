"""Who leads among methods that were judged on the same images, and what is chance."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.stages.evaluate.scores import paired_difference, score, score_of_sums, write_scores
from pipeline.stages.evaluate.segmentation_metrics import class_counts, confusion_matrix, mean_iou
from pipeline.stages.report.best_methods import BestMethod, best_methods
from pipeline.stages.report.our_results import OurResult

IMAGES = 400


def judged(folder: Path, method: str, right: np.ndarray, **changed: object) -> OurResult:
    """Return the result of an evaluation that judged these images right."""
    folder = folder / "-".join([method, *map(str, changed.values())])
    folder.mkdir()
    [top1] = [score("top1", right, "")]
    write_scores(folder, [top1], {"top1": right})
    given = {"tokenizer": "k-CLIP", "backbone": "vit_demo", "metric": "top1_finetune", "data": "demo", **changed}
    interval = (top1.low, top1.high)
    return OurResult(
        method=method,
        value=top1.value,
        interval=interval,
        seeds=1,
        preset="",
        score="top1",
        folder=str(folder),
        **given,  # type: ignore[arg-type]
    )


@pytest.fixture
def results(tmp_path: Path) -> list[OurResult]:
    draw = np.random.default_rng(0).random(IMAGES)
    best, worst = draw < 0.7, draw < 0.3
    near = best.copy()
    near[:6] = False  # a few images less
    return [judged(tmp_path, name, right) for name, right in (("MIM", near), ("MaPeT", best), ("scratch", worst))]


def test_the_best_leads_and_differences_are_told_from_chance(results: list[OurResult]) -> None:
    [best] = best_methods(results)
    assert (best.name, best.metric, best.backbone) == ("MaPeT", "top1_finetune", "vit_demo")
    assert [other.name for other in best.others] == ["MIM", "scratch"]
    [behind] = best.behind(by_chance=False)
    assert behind.name == "scratch"
    assert behind.points == pytest.approx(results[2].value - results[1].value, abs=0.01)
    assert behind.low < behind.points < behind.high < 0


def test_images_are_resampled_together() -> None:
    """Two methods that err on the same images but one differ by that one, however uncertain each of them is."""
    right = np.random.default_rng(1).random(IMAGES) < 0.5
    other = right.copy()
    other[:20] = False
    shares = (right / IMAGES, other / IMAGES)
    points, low, high = paired_difference(*shares, float)
    assert points == pytest.approx(100 * right[:20].sum() / IMAGES)
    alone = score("top1", right, "")
    assert high - low < (alone.high - alone.low) / 2
    assert paired_difference(shares[0], shares[0], float) == (0, 0, 0)


def test_the_same_share_has_the_same_interval_by_sums_and_by_means() -> None:
    right = np.random.default_rng(2).random(IMAGES) < 0.4
    by_mean, by_sums = score("top1", right, ""), score_of_sums("top1", right, lambda sums: sums / IMAGES, "")
    assert by_sums.value == by_mean.value
    assert (by_sums.low, by_sums.high) == pytest.approx((by_mean.low, by_mean.high), abs=1.0)


def test_a_single_method_leads_nobody_and_other_backbones_are_apart(results: list[OurResult], tmp_path: Path) -> None:
    assert best_methods(results[:1]) == ()
    other = judged(tmp_path, "PIM", np.ones(IMAGES, bool), backbone="ViT-T")
    assert [best.name for best in best_methods([*results, other])] == ["MaPeT"]


def test_seeds_are_averaged(results: list[OurResult], tmp_path: Path) -> None:
    again = judged(tmp_path, "MaPeT", np.zeros(IMAGES, bool), run="second seed")
    best: BestMethod
    [best] = best_methods([*results, again])
    assert best.name == "MIM"
    assert next(other for other in best.others if other.name == "MaPeT").points == pytest.approx(
        results[1].value / 2 - results[0].value, abs=0.01
    )


def counts_of_images(share: float, *, images: int = 12, seed: int = 0) -> np.ndarray:
    """Return [images, 3, K]: every image has three classes of its own, of which a network finds so much."""
    random, classes, counts = np.random.default_rng(seed), 3 * images, []
    for image in range(images):
        labels = random.integers(3 * image, 3 * image + 3, 500)
        guesses = np.where(random.random(500) < share, labels, random.integers(0, classes, 500))
        pair = torch.from_numpy(guesses), torch.from_numpy(labels)
        counts.append(class_counts(confusion_matrix(*pair, classes=classes)).numpy())
    return np.stack(counts)


def segmented(folder: Path, method: str, counts: np.ndarray, seed: int = 0) -> OurResult:
    """Return the result of a segmentation."""
    folder = folder / f"{method}-{seed}"
    folder.mkdir()
    miou = score_of_sums("miou", counts, mean_iou, "")
    names = ("right", "labelled", "predicted")
    write_scores(folder, [miou], dict(zip(names, counts.astype(np.uint32).transpose(1, 2, 0), strict=True)))
    return OurResult(
        method=method,
        tokenizer="k-CLIP",
        backbone="vit_demo",
        metric="mIoU",
        value=miou.value,
        interval=(miou.low, miou.high),
        seeds=1,
        preset="",
        data="demo",
        score="miou",
        folder=str(folder),
    )


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.95])
@pytest.mark.parametrize("images", [2, 12, 100])
def test_a_mean_iou_lies_in_its_interval_where_every_image_has_classes_of_its_own(share: float, images: int) -> None:
    found = score_of_sums("miou", counts_of_images(share, images=images), mean_iou, "")
    assert 0 <= found.low <= found.value <= found.high <= 100
    assert found.high - found.low < 60


def test_classes_that_no_drawn_image_has_stay_in_the_mean() -> None:
    """Of classes that each a single image has, found as well as each other, no draw can say more or less."""
    alike = np.zeros((12, 3, 36), np.int64)
    for image in range(12):
        alike[image, :, 3 * image : 3 * image + 3] = np.array([[10], [20], [20]])
    found = score_of_sums("miou", alike, mean_iou, "")
    assert (found.low, found.value, found.high) == (33.333, 33.333, 33.333)


def test_a_difference_of_mean_ious_lies_in_its_interval(tmp_path: Path) -> None:
    better, worse = counts_of_images(0.5), counts_of_images(0.3, seed=1)
    results = [segmented(tmp_path, "MaPeT", better), segmented(tmp_path, "MIM", worse)]
    [best] = best_methods(results)
    [other] = best.others
    assert (best.name, best.metric) == ("MaPeT", "mIoU")
    assert other.low <= other.points <= other.high < 0
    assert other.points == pytest.approx(results[1].value - results[0].value, abs=0.01)  # type: ignore[operator]


def test_a_difference_of_mean_ious_is_that_of_the_means_over_seeds(tmp_path: Path) -> None:
    shares = {"MaPeT": (0.2, 0.8), "MIM": (0.5, 0.45)}
    results = [
        segmented(tmp_path, method, counts_of_images(share, seed=seed), seed)
        for method, both in shares.items()
        for seed, share in enumerate(both)
    ]
    means = {name: np.mean([one.value for one in results if one.method == name]) for name in shares}
    [best] = best_methods(results)
    assert best.value == pytest.approx(max(means.values()))
    assert best.others[0].points == pytest.approx(min(means.values()) - max(means.values()), abs=0.01)


def test_what_was_judged_on_other_images_is_not_compared(results: list[OurResult], tmp_path: Path) -> None:
    fewer = judged(tmp_path, "PIM", np.ones(IMAGES - 1, bool))
    [best] = best_methods([*results, fewer])
    assert best.name == "MaPeT"
    assert "PIM" not in [other.name for other in best.others]


def test_trainings_of_other_lengths_are_no_seeds_of_each_other(results: list[OurResult]) -> None:
    short, long = replace(results[1], epochs=2), replace(results[1], steps=100)
    [best] = best_methods([results[0], short, long])
    assert {best.name, *(other.name for other in best.others)} == {"MIM", "MaPeT, 2 epochs", "MaPeT, 100 steps"}
