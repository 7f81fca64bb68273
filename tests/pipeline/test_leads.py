"""Who leads among methods that were judged on the same images, and what is chance."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.evaluate.scores import paired_difference, score, score_of_sums, write_scores
from pipeline.report.leads import Lead, leads
from pipeline.report.our_results import OurResult

IMAGES = 400


def judged(folder: Path, method: str, right: np.ndarray, **changed: object) -> OurResult:
    """The result of an evaluation that judged these images right."""
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
    [lead] = leads(results)
    assert (lead.name, lead.metric, lead.backbone) == ("MaPeT", "top1_finetune", "vit_demo")
    assert [other.name for other in lead.others] == ["MIM", "scratch"]
    [behind] = lead.behind(by_chance=False)
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
    assert leads(results[:1]) == ()
    other = judged(tmp_path, "PIM", np.ones(IMAGES, bool), backbone="ViT-T")
    assert [lead.name for lead in leads([*results, other])] == ["MaPeT"]


def test_seeds_are_averaged(results: list[OurResult], tmp_path: Path) -> None:
    again = judged(tmp_path, "MaPeT", np.zeros(IMAGES, bool), run="second seed")
    lead: Lead
    [lead] = leads([*results, again])
    assert lead.name == "MIM"
    assert next(other for other in lead.others if other.name == "MaPeT").points == pytest.approx(
        results[1].value / 2 - results[0].value, abs=0.01
    )
