"""The evaluations of a report as results beside the paper's: what each artifact's scores are called there."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.engine.stage_record import BuildNotes
from pipeline.paper.recipes import PAPER_RECIPES
from pipeline.paper.results import ADE20K, IMAGENET, PAPER_BACKBONES
from pipeline.stages.evaluate.scores import Score, read_scores
from pipeline.stages.recipe_views import EvaluateRecipe
from pipeline.stages.records import DemoImagesRecord, EvaluateRecord, IndexRecord
from pipeline.stages.report.departures import Standard, departures
from pipeline.stages.report.metrics import metric_name
from pipeline.stages.report.our_results import OurResult, is_sound
from pipeline.stages.report.pretrainings import Pretraining, objective_name
from pipeline.stages.report.tokenizer_builds import TokenizerBuild
from storage.artifact import Artifact

EVALUATE = EvaluateRecord.STAGE
DEMO = "demo"
_NETWORKS = {"mlp": "MLP", "vit": "ViT-T"}
_IMAGENET_TRAIN, _ADE20K_VAL, _ADE20K_CLASSES = 1_281_167, 2_000, 150


def find_evaluations(artifacts: Iterable[Artifact]) -> dict[str, Artifact]:
    """Return the evaluations among `artifacts` by their names among the inputs of a report."""
    found = [artifact for artifact in artifacts if artifact.stage == EVALUATE]
    return {f"{EVALUATE}-{artifact.fingerprint}": artifact for artifact in found}


def our_results(
    evaluations: Iterable[Artifact],
    pretrainings: Sequence[Pretraining],
    stages: Mapping[str, Artifact],
    tokenizers: Sequence[TokenizerBuild],
    *,
    preset: str,
    standard: Standard,
) -> list[OurResult]:
    """Return every score of every evaluation.

    Args:
        stages: of the build whose images were judged, by stage.
        tokenizers: all whose tokens were learned or judged.
        standard: what the paper's presets record.
    """
    learned = {pretraining.artifact.digest: pretraining for pretraining in pretrainings}
    builds = {one.tokens.digest: one for one in tokenizers}
    names = {one.tokens.digest: one.name for one in tokenizers}
    clip = next((one.clip for one in tokenizers if one.clip), "CLIP")
    found = []
    for artifact in evaluations:
        recipe, notes = EvaluateRecipe.of(artifact), BuildNotes.of(artifact)
        pretraining = learned.get(recipe.inputs.pretrain)
        cut = _cutting_point(pretraining, pretrainings) if pretraining else None
        tokens = pretraining.tokens if pretraining else recipe.tokens or ""
        common = {"preset": preset, "cutting_point": cut, **_subject(artifact, pretraining, names, clip, stages)}
        found += [
            OurResult(
                metric=metric_name(recipe.protocol, score.name, recipe.data_set),
                **_number(score),
                seeds=1,
                run=notes.tracking_run,
                link=notes.tracking_link,
                epochs=pretraining.length.epochs if pretraining else None,
                steps=pretraining.length.steps if pretraining else None,
                departures=departures(artifact, pretraining, builds.get(tokens), standard),
                score=score.name,
                folder=str(artifact.path),
                **common,
            )
            for score in read_scores(artifact.path)
        ]
    return found


def _number(score: Score) -> dict[str, Any]:
    """Return the value, interval and remark as a page can show them: what is odd about a score costs no more than
    itself."""
    interval, remarks = (score.low, score.high), [score.remark] if score.remark else []
    if is_sound(score.value, interval):
        return {"value": score.value, "interval": interval, "remark": score.remark}
    if is_sound(score.value, None):
        remarks.append("its recorded interval [{:.1f}, {:.1f}] does not hold it".format(*interval))
        return {"value": score.value, "interval": None, "remark": "; ".join(remarks)}
    return {"value": None, "interval": None, "remark": "; ".join([*remarks, f"recorded as {score.value:g} %"])}


def _subject(
    artifact: Artifact,
    pretraining: Pretraining | None,
    names: Mapping[str, str],
    clip: str,
    stages: Mapping[str, Artifact],
) -> dict[str, Any]:
    """Return what was judged, on which images. `names`: of tokenizers, by the digest of their tokens."""
    recipe, images = EvaluateRecipe.of(artifact), _images(stages)
    if recipe.protocol == "zero_shot":
        return {"method": "CLIP", "tokenizer": "none", "backbone": clip, "data": images}
    if recipe.tokens:
        network = _NETWORKS[recipe.token_network]
        return {"method": "tokens", "tokenizer": names[recipe.tokens], "backbone": network, "data": images}
    judged = {"method": "scratch", "tokenizer": "none", "data": images}
    if pretraining:
        tokenizer = names[pretraining.tokens]
        judged |= {"method": objective_name(pretraining.objective), "tokenizer": tokenizer}
    if recipe.protocol == "segmentation":
        judged["data"] = _segmented(artifact, recipe.segmented_classes, images)
    elif recipe.data_set:
        judged["data"] = recipe.data_set
    assert recipe.backbone, "the other protocols judge one"
    name = recipe.backbone.name
    return {**judged, "backbone": PAPER_BACKBONES.get(name, name), "pretraining_data": images if pretraining else ""}


def _cutting_point(pretraining: Pretraining, others: Sequence[Pretraining]) -> int | None:
    """Return the cutting point of PIM or MaPeT where it is not the paper's for the backbone, or varies among the
    pre-trainings; else None."""
    cut, backbone = _cut(pretraining), pretraining.recipe.backbone.name
    if recipe := PAPER_RECIPES.get(backbone):
        return None if cut == recipe.cutting_point else cut
    alike = {
        _cut(other)
        for other in others
        if (other.objective, other.recipe.backbone.name) == (pretraining.objective, backbone)
    }
    return cut if len(alike) > 1 else None


def _cut(pretraining: Pretraining) -> int | None:
    return pretraining.recipe.objective_options.cutting_point


def _images(stages: Mapping[str, Artifact]) -> str:
    if DemoImagesRecord.STAGE in stages:
        return DEMO
    images = IndexRecord.of(stages[IndexRecord.STAGE])
    is_imagenet = (images.splits.get("train"), images.classes) == (_IMAGENET_TRAIN, 1000)
    return IMAGENET if is_imagenet else "own images"


def _segmented(artifact: Artifact, classes: int, images: str) -> str:
    if (EvaluateRecord.of(artifact).val_images, classes) == (_ADE20K_VAL, _ADE20K_CLASSES):
        return ADE20K
    return DEMO if images == DEMO else "own segmented images"
