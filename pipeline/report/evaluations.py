"""The evaluations of a report as results beside the paper's: what each artifact's scores are called there."""

from collections.abc import Iterable, Mapping, Sequence

from pipeline.evaluate.scores import read_scores
from pipeline.report.our_results import OurResult
from pipeline.report.pretrainings import Pretraining, objective_name
from storage.artifact import Artifact
from storage.token_store import TokenStore

EVALUATE = "evaluate"  # the stage; a stage does not import another
_METRICS = {
    ("fine_tune", "top1"): "top1_finetune",
    ("linear_probe", "top1"): "linear_probe_top1",
    ("tokens_as_input", "top1"): "top1_tokens_as_input",
    ("tokens_as_input", "top5"): "top5_tokens_as_input",
}
_TOKENIZERS = {"kclip": "k-CLIP", "vqkd": "VQ-KD", "dalle": "DALL-E"}
_BACKBONES = {"vit_tiny": "ViT-T", "vit_small": "ViT-S", "vit_base": "ViT-B"}
_FINE_TUNE_EPOCHS = {"vit_tiny": 300, "vit_small": 200, "vit_base": 100}  # Table 9
_PROBE_EPOCHS = 50
_IMAGENET_TRAIN = 1_281_167


def find_evaluations(artifacts: Iterable[Artifact]) -> dict[str, Artifact]:
    """The evaluations among `artifacts` by their names among the inputs of a report."""
    found = [artifact for artifact in artifacts if artifact.stage == EVALUATE]
    return {f"{EVALUATE}-{artifact.fingerprint}": artifact for artifact in found}


def our_results(
    evaluations: Iterable[Artifact], pretrainings: Sequence[Pretraining], stages: Mapping[str, Artifact]
) -> list[OurResult]:
    """Every score of every evaluation."""
    learned = {pretraining.artifact.digest: pretraining for pretraining in pretrainings}
    return [
        result
        for artifact in evaluations
        for result in _of_one(artifact, learned.get(artifact.recipe["inputs"].get("pretrain", "")), stages)
    ]


def _of_one(artifact: Artifact, pretraining: Pretraining | None, stages: Mapping[str, Artifact]) -> list[OurResult]:
    options = artifact.recipe["options"]
    protocol, backbone = options["protocol"], options.get("backbone", {}).get("name", "")
    tokenizer = TokenStore(stages["tokenize_images"].path).attributes["tokenizer"]
    of_tokens = not backbone
    network = options["options"].get("network", "")
    return [
        OurResult(
            method=objective_name(pretraining.objective) if pretraining else "scratch",
            tokenizer=_TOKENIZERS.get(tokenizer, tokenizer) if pretraining or of_tokens else "none",
            backbone=_BACKBONES.get(backbone, backbone) or {"mlp": "MLP", "vit": "ViT-T"}[network],
            metric=_METRICS.get((protocol, score.name), score.name),
            value=score.value,
            interval=(score.low, score.high),
            seeds=1,
            preset="",
            data=_data(stages),
            run=artifact.notes.get("tracking_run", ""),
            epochs=pretraining.options["training"]["epochs"] if pretraining else None,
            departures=_departures(protocol, backbone, options["options"]["training"]["epochs"]),
        )
        for score in read_scores(artifact.path)
    ]


def _data(stages: Mapping[str, Artifact]) -> str:
    if "make_demo_images" in stages:
        return "demo"
    images = stages["index_images"].summary
    is_imagenet = (images.get("train_images"), images.get("classes")) == (_IMAGENET_TRAIN, 1000)
    return "ImageNet-1k" if is_imagenet else "own images"


def _departures(protocol: str, backbone: str, epochs: int) -> tuple[str, ...]:
    """What differs from the paper's recipe."""
    if protocol == "fine_tune" and epochs != _FINE_TUNE_EPOCHS.get(backbone):
        return (f"fine-tuned for {epochs} epochs",)
    if protocol == "linear_probe" and epochs != _PROBE_EPOCHS:
        return (f"probed for {epochs} epochs",)
    return ()
