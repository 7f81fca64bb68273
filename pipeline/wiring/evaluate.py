"""From images to scores: a pre-training (built, or found), then every protocol on it.

A protocol that fails does not keep the others from running; what failed is said at the end.
"""

from collections.abc import Iterator
from typing import Any

from pipeline.config import EvaluateConfig
from pipeline.data.labelled_images import choose_labelled
from pipeline.evaluate.evaluate import PROTOCOLS, evaluate
from pipeline.evaluate.kept_classifier import PROTOCOL as KEPT_BY
from pipeline.evaluate.protocol import LabelledOptions
from pipeline.index_images import index_images
from pipeline.make_demo_segmentation import make_demo_segmentation
from pipeline.wiring.base import Chain, ExpectedCall, FlowResult, RunStage, run_directly
from pipeline.wiring.pretrain import call_of_pretrain_one, calls_of_find_tokens, find_tokens, pretrain_one
from pipeline.wiring.tokens import IndexedImages, TokenizedImages, find_images
from pipeline.workspace import Workspace
from storage.artifact import Artifact
from storage.image_index import ImageIndex


def expected_calls(config: EvaluateConfig) -> tuple[ExpectedCall, ...]:
    """Those of a run, in the order in which they are made."""
    return (
        *calls_of_find_tokens(config),
        call_of_pretrain_one(config),
        *calls_of_evaluate_clip(config),
        *calls_of_evaluate_tokens(config),
        *calls_of_evaluate_backbone(config, config.pretrain.objective),
    )


def evaluate_pretraining(
    config: EvaluateConfig, workspace: Workspace, run_stage: RunStage = run_directly
) -> FlowResult:
    """Evaluate one pre-training, and its tokens. `run_stage` makes one call of a stage."""
    run = Chain(workspace, run_stage)
    require_labels(config, find_images(config, run))
    built = find_tokens(config, run)
    trained = pretrain_one(config, built, run)
    evaluate_clip(config, built, run)
    evaluate_tokens(config, built, run)
    evaluate_backbone(config, built, trained, run, subject=config.pretrain.objective)
    return run.finished()


def require_labels(config: EvaluateConfig, found: IndexedImages) -> None:
    """Ask for the labels that the protocols will want, before a pre-training of days is made for nothing.

    Raises:
        PipelineError: a split has no labelled image.
    """
    index = ImageIndex.read(found.images.path)
    for protocol in config.evaluate.protocols:
        options = getattr(config, protocol)
        if isinstance(options, LabelledOptions) and protocol != "transfer":
            trains = PROTOCOLS[protocol].judges != "clip"
            choose_labelled(index, train=options.train_split if trains else options.val_split, val=options.val_split)


def calls_of_evaluate_backbone(config: EvaluateConfig, subject: str) -> Iterator[ExpectedCall]:
    for protocol in _protocols(config, "backbone"):
        if protocol == "transfer":
            for data_set, _ in config.transfer.sources():
                yield ExpectedCall(f"index_images-{data_set}")
                yield ExpectedCall(f"evaluate-transfer_{data_set}-{subject}")
        else:
            if protocol == "segmentation" and _draws_segmentation(config):
                yield ExpectedCall("make_demo_segmentation")
            yield ExpectedCall(f"evaluate-{protocol}-{subject}", config, protocol)


def evaluate_backbone(
    config: EvaluateConfig, built: TokenizedImages, pretrained: Artifact | None, run: Chain, *, subject: str
) -> None:
    """All protocols of backbones; without a pre-training from scratch."""
    for protocol in _protocols(config, "backbone"):
        if protocol == "transfer":
            _transfer(config, pretrained, run, subject=subject)
            continue
        with run.attempt(f"{protocol} of {subject}"):
            chosen = _with_demo_segmentation(config, run) if protocol == "segmentation" else config
            _evaluate(protocol, f"{protocol}-{subject}", chosen, run, **_judged(built), pretrained=pretrained)


def calls_of_evaluate_tokens(config: EvaluateConfig, *, subject: str = "") -> Iterator[ExpectedCall]:
    for protocol in _protocols(config, "tokens"):
        yield ExpectedCall(f"evaluate-{_joined(protocol, subject)}")


def evaluate_tokens(config: EvaluateConfig, built: TokenizedImages, run: Chain, *, subject: str = "") -> None:
    """All protocols of tokens. `subject`: whose tokens, and with which seed, where a run has several."""
    for protocol in _protocols(config, "tokens"):
        variant = _joined(protocol, subject)
        with run.attempt(f"{variant} of the tokens"):
            _evaluate(protocol, variant, config, run, **_judged(built))


def calls_of_evaluate_clip(config: EvaluateConfig) -> Iterator[ExpectedCall]:
    for protocol in _clip_protocols(config):
        yield ExpectedCall(f"evaluate-{protocol}")


def evaluate_clip(config: EvaluateConfig, built: TokenizedImages, run: Chain) -> None:
    """All protocols of the CLIP that made the tokens; nothing is trained, so there is one result for all seeds."""
    for protocol in _clip_protocols(config):
        with run.attempt(f"{protocol} of the CLIP"):
            _evaluate(protocol, protocol, config, run, **_judged(built), clip=built.clip)


def _protocols(config: EvaluateConfig, judges: str) -> list[str]:
    return [protocol for protocol in config.evaluate.protocols if PROTOCOLS[protocol].judges == judges]


def _clip_protocols(config: EvaluateConfig) -> list[str]:
    """A CLIP of random weights has made tokens, but knows no words; other tokenizers have no CLIP."""
    return _protocols(config, "clip") if config.tokenizer == "kclip" and config.clip.pretrained else []


def _joined(protocol: str, subject: str) -> str:
    return f"{protocol}-{subject}" if subject else protocol


def _judged(built: TokenizedImages) -> dict[str, Any]:
    return {"images": built.images, "source": built.source, "tokens": built.tokens}


def _transfer(config: EvaluateConfig, pretrained: Artifact | None, run: Chain, *, subject: str) -> None:
    for data_set, source in config.transfer.sources():
        named = f"transfer_{data_set}"
        with run.attempt(f"{named} of {subject}"):
            source = source.model_copy(update={"identity": config.images.identity})
            images = run(index_images, source, variant=data_set)
            others: dict[str, Any] = {"images": images, "source": source, "tokens": None, "data_set": data_set}
            _evaluate("transfer", f"{named}-{subject}", config, run, **others, pretrained=pretrained)


def _draws_segmentation(config: EvaluateConfig) -> bool:
    return config.images.kind == "demo" and not config.segmentation.path


def _with_demo_segmentation(config: EvaluateConfig, run: Chain) -> EvaluateConfig:
    if not _draws_segmentation(config):
        return config
    drawn = run(make_demo_segmentation, config.demo_segmentation, drawing=config.demo_images)
    options = config.segmentation.model_copy(update={"path": str(drawn.path)})
    return config.model_copy(update={"segmentation": options})


def _evaluate(protocol: str, variant: str, config: EvaluateConfig, run: Chain, **judged: Any) -> None:
    arguments = {"pretrained": None, "backbone": config.backbone, **judged}
    arguments["keep_weights"] = config.evaluate.keep_weights and protocol == KEPT_BY
    run(evaluate, protocol, variant=variant, options=getattr(config, protocol), **arguments)
