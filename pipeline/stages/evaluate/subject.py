"""The subject of an evaluation, and the network that it stands for."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from models.vit.options import BackboneOptions
from pipeline.stages.recipe_views import PretrainRecipe
from storage.artifact import Artifact

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a backbone with pre-trained weights, or from scratch.

    Attributes:
        pretrained: a `pretrain` artifact; None for random weights.
    """

    backbone: BackboneOptions
    pretrained: Artifact | None

    @property
    def origin(self) -> str:
        """The objective that it was pre-trained with, or "scratch"."""
        return "scratch" if self.pretrained is None else PretrainRecipe.of(self.pretrained).objective

    @property
    def label(self) -> str:
        return f"{self.origin} {self.backbone.name}"

    def network(self, *, seed: int) -> "VisionTransformer":
        """Return the backbone without a head, on the CPU."""
        from models.vit.backbones import build_backbone  # torch, which its name need not wait for
        from models.weights.timm_files import load_backbone

        if self.pretrained is None:
            return build_backbone(self.backbone, seed=seed)
        return load_backbone(self.pretrained.path)
