"""The evaluations of a report as results beside the paper's: what each artifact's scores are called there."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.paper.recipes import PAPER_RECIPES
from pipeline.paper.results import ADE20K, IMAGENET, PAPER_BACKBONES
from pipeline.stages.evaluate.scores import Score, read_scores
from pipeline.stages.report.departures import Standard, departures
from pipeline.stages.report.our_results import OurResult, is_sound
from pipeline.stages.report.pretrainings import Pretraining, objective_name
from pipeline.stages.report.tokenizer_builds import TokenizerBuild
from storage.artifact import Artifact

EVALUATE = "evaluate"  # the stage; a stage does not import another
DEMO = "demo"
_METRICS = {
    ("fine_tune", "top1"): "top1_finetune",
    ("fine_tune", "top5"): "top5_finetune",
    ("linear_probe", "top1"): "linear_probe_top1",
    ("segmentation", "miou"): "mIoU",
    ("transfer", "top1"): "linear_probe_top1[{}]",
    ("tokens_as_input", "top1"): "top1_tokens_as_input",
    ("tokens_as_input", "top5"): "top5_tokens_as_input",
    ("tokens_as_input_vit", "top1"): "top1_tokens_as_input",
    ("tokens_as_input_vit", "top5"): "top5_tokens_as_input",
    ("zero_shot", "top1"): "zero_shot_top1",
    ("zero_shot", "top5"): "zero_shot_top5",
}
_NETWORKS = {"mlp": "MLP", "vit": "ViT-T"}
_IMAGENET_TRAIN, _ADE20K_VAL, _ADE20K_CLASSES = 1_281_167, 2_000, 150


def find_evaluations(artifacts: Iterable[Artifact]) -> dict[str, Artifact]:
    """The evaluations among `artifacts` by their names among the inputs of a report."""
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
    """Every score of every evaluation.

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
        pretraining = learned.get(artifact.recipe["inputs"].get("pretrain", ""))
        cut = _cutting_point(pretraining, pretrainings) if pretraining else None
        options, data_set = _options(artifact), _data_set(artifact)
        tokens = pretraining.tokens if pretraining else options.get("tokens", "")
        common = {"preset": preset, "cutting_point": cut, **_subject(artifact, pretraining, names, clip, stages)}
        found += [
            OurResult(
                metric=_METRICS.get((options["protocol"], score.name), score.name).format(data_set),
                **_number(score),
                seeds=1,
                run=artifact.notes.get("tracking_run", ""),
                link=artifact.notes.get("tracking_link", ""),
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
    """Value, interval and remark as a page can show them: what is odd about a score costs no more than itself."""
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
    """What was judged, on which images. `names`: of tokenizers, by the digest of their tokens."""
    options, images = _options(artifact), _images(stages)
    if options["protocol"] == "zero_shot":
        return {"method": "CLIP", "tokenizer": "none", "backbone": clip, "data": images}
    if "tokens" in options:
        network = _NETWORKS[options["options"]["network"]]
        return {"method": "tokens", "tokenizer": names[options["tokens"]], "backbone": network, "data": images}
    judged = {"method": "scratch", "tokenizer": "none", "data": images}
    if pretraining:
        tokenizer = names[pretraining.tokens]
        judged |= {"method": objective_name(pretraining.objective), "tokenizer": tokenizer}
    if options["protocol"] == "segmentation":
        judged["data"] = _segmented(artifact, images)
    elif data_set := _data_set(artifact):
        judged["data"] = data_set
    name = options["backbone"]["name"]
    return {**judged, "backbone": PAPER_BACKBONES.get(name, name), "pretraining_data": images if pretraining else ""}


def _options(artifact: Artifact) -> Mapping[str, Any]:
    options: Mapping[str, Any] = artifact.recipe["options"]
    return options


def _data_set(artifact: Artifact) -> str:
    return str(_options(artifact).get("data_set", ""))


def _cutting_point(pretraining: Pretraining, others: Sequence[Pretraining]) -> int | None:
    """PIM's or MaPeT's, where it is not the paper's for the backbone, or varies among the pre-trainings."""
    cut: int | None = pretraining.options["objective_options"].get("cutting_point")
    backbone = pretraining.options["backbone"]["name"]
    if recipe := PAPER_RECIPES.get(backbone):
        return None if cut == recipe.cutting_point else cut
    alike = {
        other.options["objective_options"].get("cutting_point")
        for other in others
        if (other.objective, other.options["backbone"]["name"]) == (pretraining.objective, backbone)
    }
    return cut if len(alike) > 1 else None


def _images(stages: Mapping[str, Artifact]) -> str:
    if "make_demo_images" in stages:
        return DEMO
    images = stages["index_images"].summary
    is_imagenet = (images.get("train_images"), images.get("classes")) == (_IMAGENET_TRAIN, 1000)
    return IMAGENET if is_imagenet else "own images"


def _segmented(artifact: Artifact, images: str) -> str:
    judged = (artifact.summary["val_images"], _options(artifact)["options"]["classes"])
    if judged == (_ADE20K_VAL, _ADE20K_CLASSES):
        return ADE20K
    return DEMO if images == DEMO else "own segmented images"
