"""The classifier that a fine-tuning leaves behind with `evaluate.keep_weights`: a directory that timm loads with its
head, in the evaluation's artifact."""

from collections.abc import Sequence
from pathlib import Path

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.vision_transformer import VisionTransformer

from models.vit.options import BackboneOptions
from models.weights.timm_files import blank_network, save_backbone

CLASSIFIER = "classifier"


def keep_classifier(
    model: VisionTransformer,
    backbone: BackboneOptions,
    folder: Path,
    *,
    class_names: Sequence[str],
    crop_pct: float,
    origin: str,
) -> None:
    """Write the network into the artifact's folder, with what its images were normalised by and its classes are called.

    Args:
        class_names: in the order of the head's rows; left out where there is not one for each of them.
        origin: the objective of the pre-training, or "scratch".
    """
    save_backbone(
        model,
        backbone,
        folder / CLASSIFIER,
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        crop_pct=crop_pct,
        label_names=class_names if len(class_names) == model.num_classes else (),
        extra={"fine_tuned": {"pretraining": origin}},
    )


def classifier_bytes(backbone: BackboneOptions) -> int:
    """Return what such a classifier takes on the disk, but for its head (4 bytes times width for every class)."""
    network = blank_network(backbone, num_classes=0, global_pool="avg")
    return sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
