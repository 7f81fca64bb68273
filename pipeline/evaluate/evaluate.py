"""Stage `evaluate`: one protocol on one backbone, pre-trained or from scratch (or on tokens, or on CLIP itself).

The artifact holds `scores.json` (numbers in percent with bootstrap intervals), `correct.npz` (which validation images
were judged right, from which differences between evaluations can be tested) and the curves of whatever was trained; of
a fine-tuning also the classifier, if it is to be kept.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from models.backbones import BackboneOptions
from models.clip import ClipOptions
from models.options import Options
from pipeline.data.segmentation_files import SegmentationFiles
from pipeline.data.sources.base import ImageSourceOptions
from pipeline.evaluate.fine_tune import FineTuneOptions, fine_tune
from pipeline.evaluate.frozen_features import FrozenFeaturesOptions, frozen_features
from pipeline.evaluate.linear_probe import LinearProbeOptions, linear_probe
from pipeline.evaluate.protocol import EvaluationJob, EvaluationOptions, Subject
from pipeline.evaluate.scores import read_scores
from pipeline.evaluate.segmentation import SegmentationOptions, identified_files, segmentation
from pipeline.evaluate.tokens_as_input import TokensAsInputOptions, tokens_as_input
from pipeline.evaluate.transfer import TransferOptions
from pipeline.evaluate.zero_shot import ZeroShotOptions, zero_shot, zero_shot_definition
from pipeline.fingerprint import defining_options, recipe
from pipeline.objective_colours import objective_colour
from pipeline.tracker import TrackedRun
from pipeline.training.launch import train_together
from pipeline.training.loop import CHECKPOINTS, Reporter
from pipeline.training.options import TrainingLength
from pipeline.training.processes import Processes
from pipeline.workspace import StageResult, Workspace
from storage.artifact import Artifact, Built
from storage.files import sha256_bytes
from storage.token_store import TokenStore

STAGE = "evaluate"
VERSION = 3


@dataclass(frozen=True)
class Protocol:
    """How something is evaluated.

    Attributes:
        judges: a backbone, or without one the tokens of the images, or the CLIP that made them.
        images: the protocol's own images, identified, where it has some; None: it takes labelled ones of an index.
    """

    options_class: type[EvaluationOptions]
    run: Callable[[EvaluationJob, Processes, Reporter], dict[str, Any]]
    judges: Literal["backbone", "tokens", "clip"] = "backbone"
    images: Callable[[Any, Workspace], SegmentationFiles] | None = None


PROTOCOLS: Mapping[str, Protocol] = {
    "frozen_features": Protocol(FrozenFeaturesOptions, frozen_features),
    "linear_probe": Protocol(LinearProbeOptions, linear_probe),
    "fine_tune": Protocol(FineTuneOptions, fine_tune),
    "segmentation": Protocol(SegmentationOptions, segmentation, images=identified_files),
    "transfer": Protocol(TransferOptions, linear_probe),
    "tokens_as_input": Protocol(TokensAsInputOptions, tokens_as_input, judges="tokens"),
    "tokens_as_input_vit": Protocol(TokensAsInputOptions, tokens_as_input, judges="tokens"),
    "zero_shot": Protocol(ZeroShotOptions, zero_shot, judges="clip"),
}


ProtocolName = Literal[*PROTOCOLS]  # type: ignore[valid-type]


class EvaluateOptions(Options):
    """Which protocols are run."""

    protocols: tuple[ProtocolName, ...] = Field(
        default=("frozen_features", "linear_probe", "fine_tune", "tokens_as_input"), min_length=1
    )
    """Names of protocols; each has a section of options of that name."""

    keep_weights: bool = False
    """Keep the classifier that `fine_tune` ends with, for `mapet export`. An evaluation that was made without is made
    again: the weights are gone."""


def evaluate(
    protocol: str,
    *,
    options: EvaluationOptions,
    backbone: BackboneOptions,
    pretrained: Artifact | None,
    images: Artifact,
    source: ImageSourceOptions,
    tokens: Artifact | None,
    clip: ClipOptions | None = None,
    data_set: str = "",
    keep_weights: bool = False,
    workspace: Workspace,
) -> StageResult:
    """Evaluate, or find the scores.

    Args:
        protocol: a name in PROTOCOLS; `options` are of its class.
        backbone: what was pre-trained, or what to train from scratch.
        pretrained: a `pretrain` artifact; None for random weights, and for protocols without a backbone.
        tokens: of the images: judged by protocols of tokens; the others leave out images that have none.
        clip: the encoder that made the tokens, for the protocol that judges it.
        data_set: what the images are called, where they are not those of the pre-training.
        keep_weights: put what was trained into the artifact; only `fine_tune` can.

    Raises:
        PipelineError: there are no labelled images, or an image cannot be decoded.
        ModelError: the weights do not fit.
    """
    chosen = PROTOCOLS[protocol]
    subject = Subject(backbone, pretrained)
    of_backbone = chosen.judges == "backbone"
    judged = subject.origin if of_backbone else chosen.judges
    named = f"{protocol}_{data_set}" if data_set else protocol
    what = f"{named} {subject.label if of_backbone else _tokenizer(tokens)}"
    definition = _definition(protocol, options, subject, tokens, clip, data_set, workspace)
    definition |= {"keep_weights": True} if keep_weights else {}  # without: the fingerprints there have always been
    inputs = {} if chosen.images else {"images": images.digest}
    inputs |= {"pretrain": pretrained.digest} if pretrained else {}
    made_from = recipe(STAGE, VERSION, definition, **inputs)

    def build(folder: Path, run: TrackedRun) -> Built:
        run.tags({"protocol": named, "objective": judged, "mlflow.runColor": objective_colour(judged)})
        job = EvaluationJob(options, subject, images, source, tokens, folder, workspace.settings, clip, keep_weights)
        notes = train_together(partial(chosen.run, job), workspace.settings, run, what=what)
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        scores = read_scores(folder)
        run.metrics({score.name: score.value for score in scores})
        summary = {score.name: score.value for score in scores} | {"val_images": scores[0].images}
        return Built({**summary, "what": what}, notes)

    trained = f"of {_training(pretrained, tokens)}; " if of_backbone and pretrained else ""
    distinction = f"{trained}seed {options.seed}"
    result = workspace.artifact(
        made_from, build, label=f"evaluate {what}", distinction=distinction, compared_with=STAGE
    )
    _tell_the_pretraining(result, named, pretrained, workspace)
    return result


def _tokenizer(tokens: Artifact | None) -> str:
    return str(TokenStore(tokens.path).attributes["tokenizer"]) if tokens else "CLIP"


def _training(pretrained: Artifact, tokens: Artifact | None) -> str:
    """What tells it from others with the same objective and backbone."""
    recorded = pretrained.recipe["options"]
    words = [TrainingLength.recorded(recorded["training"]).words, f"seed {recorded['seed']}"]
    if tokens is not None and pretrained.recipe["inputs"]["tokens"] == tokens.digest:
        words.insert(0, _tokenizer(tokens))
    return ", ".join(words)


def _definition(
    protocol: str,
    options: EvaluationOptions,
    subject: Subject,
    tokens: Artifact | None,
    clip: ClipOptions | None,
    data_set: str,
    workspace: Workspace,
) -> dict[str, Any]:
    """What the scores depend on beside the inputs."""
    chosen = PROTOCOLS[protocol]
    definition = {"protocol": protocol, "options": defining_options(options)}
    definition |= {"data_set": data_set} if data_set else {}
    if chosen.judges == "tokens":
        return {**definition, "tokens": tokens.digest if tokens else None}
    if chosen.judges == "clip":
        return {**definition, "clip": zero_shot_definition(clip) if clip else None, "usable_images": _usable(tokens)}
    definition["backbone"] = defining_options(subject.backbone)
    if chosen.images:
        return {**definition, "images": chosen.images(options, workspace).identity}
    return {**definition, "usable_images": _usable(tokens)}


def _usable(tokens: Artifact | None) -> str | None:
    """Of the tokens only which images have some counts: scores are the same for every tokenizer of these images."""
    return None if tokens is None else sha256_bytes(TokenStore(tokens.path).status.tobytes())


def _tell_the_pretraining(result: StageResult, named: str, pretrained: Artifact | None, workspace: Workspace) -> None:
    """The scores onto the run of the pre-training too: MLflow's table of pre-trainings then is the comparison."""
    if pretrained is not None and not result.cached:
        scores = {f"eval/{named}/{score.name}": score.value for score in read_scores(result.artifact.path)}
        workspace.run.annotate(pretrained.notes.get("tracking_run", ""), scores)
