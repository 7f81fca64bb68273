"""Classifiers that see nothing of an image but its tokens (the paper's Table 7).

    MLP      embedding [K, D] -> linear D -> D -> ReLU -> mean over the patches -> linear D -> classes
    ViT-T    the embedding takes the place of the patch embedding; positions, class token and blocks as in ViT-T

D is 192 in the paper. How they were trained is not published.
"""

from typing import Any

from jaxtyping import Float, Int
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn


class TokenMLP(nn.Module):
    """Sees which tokens there are, not where."""

    def __init__(self, vocabulary: int, classes: int, *, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.hidden = nn.Linear(width, width)
        self.head = nn.Linear(width, classes)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, tokens: Int[Tensor, "B N"]) -> Float[Tensor, "B K"]:
        return self.head(self.hidden(self.embedding(tokens)).relu().mean(1))


class TokenViT(nn.Module):
    """A Vision Transformer without its patch embedding; the class token is read."""

    def __init__(self, vocabulary: int, classes: int, *, patches: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        # The image size is only a way to say how many positions there are.
        self.vit = VisionTransformer(
            img_size=(1, patches), patch_size=1, embed_dim=width, depth=depth, num_heads=heads, num_classes=classes
        )
        self.vit.patch_embed = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.vit.patch_embed.weight, std=0.02)

    def forward(self, tokens: Int[Tensor, "B N"]) -> Float[Tensor, "B K"]:
        return self.vit(tokens)


def parameter_groups(network: TokenMLP | TokenViT, weight_decay: float) -> list[dict[str, Any]]:
    """Group the parameters by weight decay: matrices decay; vectors, positions, class token and embedding do not.

    Most tokens are in no image of a step: their embeddings would fade merely for being rare.
    """
    embedding, spared = ("embedding", set[str]())
    if isinstance(network, TokenViT):
        embedding, spared = "vit.patch_embed", {f"vit.{name}" for name in network.vit.no_weight_decay()}
    groups: list[dict[str, Any]] = param_groups_weight_decay(
        network, weight_decay, no_weight_decay_list=[*spared, f"{embedding}.weight"]
    )
    return groups
