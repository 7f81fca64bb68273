"""Stage `evaluate`: one protocol on one backbone, pre-trained or from scratch (or on tokens alone).

The artifact holds `scores.json` (numbers in percent with bootstrap intervals), `correct.npz` (which validation images
were judged right, from which differences between evaluations can be tested) and the curves of whatever was trained.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from models.backbones import BackboneOptions
from models.options import Options
from pipeline.data.sources.base import ImageSourceOptions
from pipeline.evaluate.fine_tune import FineTuneOptions, fine_tune
from pipeline.evaluate.frozen_features import FrozenFeaturesOptions, frozen_features
from pipeline.evaluate.linear_probe import LinearProbeOptions, linear_probe
from pipeline.evaluate.protocol import EvaluationJob, LabelledOptions, Subject
from pipeline.evaluate.scores import read_scores
from pipeline.evaluate.tokens_as_input import TokensAsInputOptions, tokens_as_input
from pipeline.fingerprint import defining_options, recipe
from pipeline.objective_colours import objective_colour
from pipeline.tracker import TrackedRun
from pipeline.training.launch import train_together
from pipeline.training.loop import CHECKPOINTS, Reporter
from pipeline.training.processes import Processes
from pipeline.workspace import StageResult, Workspace
from storage.artifact import Artifact, Built
from storage.files import sha256_bytes
from storage.token_store import TokenStore

STAGE = "evaluate"
VERSION = 1


@dataclass(frozen=True)
class Protocol:
    """How something is evaluated. `of_tokens`: the tokens are judged, and no backbone."""

    options_class: type[LabelledOptions]
    run: Callable[[EvaluationJob, Processes, Reporter], dict[str, float]]
    of_tokens: bool = False


PROTOCOLS: Mapping[str, Protocol] = {
    "frozen_features": Protocol(FrozenFeaturesOptions, frozen_features),
    "linear_probe": Protocol(LinearProbeOptions, linear_probe),
    "fine_tune": Protocol(FineTuneOptions, fine_tune),
    "tokens_as_input": Protocol(TokensAsInputOptions, tokens_as_input, of_tokens=True),
}


ProtocolName = Literal[*PROTOCOLS]  # type: ignore[valid-type]


class EvaluateOptions(Options):
    """Which protocols are run."""

    protocols: tuple[ProtocolName, ...] = ("frozen_features", "linear_probe", "fine_tune", "tokens_as_input")
    """Names of protocols; each has a section of options of that name."""


def evaluate(
    protocol: str,
    *,
    options: LabelledOptions,
    backbone: BackboneOptions,
    pretrained: Artifact | None,
    images: Artifact,
    source: ImageSourceOptions,
    tokens: Artifact | None,
    workspace: Workspace,
) -> StageResult:
    """Evaluate, or find the scores.

    Args:
        protocol: a name in PROTOCOLS; `options` are of its class.
        backbone: what was pre-trained, or what to train from scratch.
        pretrained: a `pretrain` artifact; None for random weights, and for protocols of tokens.
        tokens: of the images: judged by protocols of tokens; the others leave out images that have none.

    Raises:
        PipelineError: there are no labelled images, or an image cannot be decoded.
        ModelError: the weights do not fit.
    """
    chosen = PROTOCOLS[protocol]
    subject = Subject(backbone, pretrained)
    judged = "tokens" if chosen.of_tokens else subject.origin
    what = f"{protocol} {judged if chosen.of_tokens else subject.label}"
    made_from = recipe(STAGE, VERSION, _definition(protocol, options, subject, tokens), **_inputs(images, pretrained))

    def build(folder: Path, run: TrackedRun) -> Built:
        run.tags({"protocol": protocol, "objective": judged, "mlflow.runColor": objective_colour(judged)})
        job = EvaluationJob(options, subject, images, source, tokens, folder, workspace.settings)
        notes = train_together(partial(chosen.run, job), workspace.settings, run, what=what)
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        scores = read_scores(folder)
        run.metrics({score.name: score.value for score in scores})
        summary = {score.name: score.value for score in scores} | {"val_images": scores[0].images}
        return Built({**summary, "what": what}, notes)

    result = workspace.artifact(made_from, build, label=f"evaluate {what}", compared_with=STAGE)
    _tell_the_pretraining(result, protocol, pretrained, workspace)
    return result


def _definition(protocol: str, options: LabelledOptions, subject: Subject, tokens: Artifact | None) -> dict[str, Any]:
    definition = {"protocol": protocol, "options": defining_options(options)}
    if PROTOCOLS[protocol].of_tokens:
        return {**definition, "tokens": tokens.digest if tokens else None}
    # Of the tokens only which images have some counts: evaluations are the same for every tokenizer of these images.
    usable = None if tokens is None else sha256_bytes(TokenStore(tokens.path).status.tobytes())
    return {**definition, "backbone": defining_options(subject.backbone), "usable_images": usable}


def _inputs(images: Artifact, pretrained: Artifact | None) -> dict[str, str]:
    return {"images": images.digest, **({"pretrain": pretrained.digest} if pretrained else {})}


def _tell_the_pretraining(
    result: StageResult, protocol: str, pretrained: Artifact | None, workspace: Workspace
) -> None:
    """The scores onto the run of the pre-training too: MLflow's table of pre-trainings then is the comparison."""
    if pretrained is not None and not result.cached:
        scores = {f"eval/{protocol}/{score.name}": score.value for score in read_scores(result.artifact.path)}
        workspace.run.annotate(pretrained.notes.get("tracking_run", ""), scores)
