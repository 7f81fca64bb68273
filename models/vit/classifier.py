"""The paper's fine-tuning network: a Vision Transformer, the mean of its patches, a fresh norm and a fresh head.

timm's `VisionTransformer` with `global_pool="avg"`; only stochastic depth differs from its own forward: it is drawn
from the images' seeds, one draw per image and branch, so that nothing depends on a global generator.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int64
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from models.errors import ModelError
from models.vit.backbones import build_backbone
from models.vit.options import BackboneOptions
from models.vit.trunk import drop_path_scales, embed, encode

_FRESH = ("head.", "fc_norm.")
_DROPPED = "norm."  # the final norm of pre-training: the mean of the patches gets a norm of its own


def build_classifier(
    options: BackboneOptions, classes: int, *, weights: Mapping[str, Tensor] | None, seed: int
) -> VisionTransformer:
    """Build a classifier: norm and head drawn from `seed`, and the rest too unless given as `weights` of a backbone.

    Raises:
        ModelError: the weights are not those of such a backbone.
    """
    model = build_backbone(options, seed=seed, classes=classes)
    if weights is None:
        return model
    given = {name: tensor for name, tensor in weights.items() if not name.startswith(_DROPPED)}
    found = model.load_state_dict(given, strict=False)
    missing = [name for name in found.missing_keys if not name.startswith(_FRESH)]
    if missing or found.unexpected_keys:
        raise ModelError(
            f"the weights are not those of {options.name}: missing {missing[:1]}, "
            f"unexpected {found.unexpected_keys[:1]}"
        )
    return model


def classify(
    model: VisionTransformer, images: Float[Tensor, "B 3 H W"], seeds: Int64[Tensor, " B"]
) -> Float[Tensor, "B K"]:
    """Return the logits of the classes; `seeds` are for stochastic depth in training mode."""
    class_row, patches = embed(model, images)
    rows = torch.cat([class_row, patches], dim=1)
    features = encode(model, rows, scales=drop_path_scales(model, seeds))
    return model.head(model.fc_norm(features[:, 1:].mean(1)))
