"""The image tower of a CLIP Vision Transformer as a frozen encoder of patches: images [B, 3, side, side] -> [B, N, D].

    feature of patch i = LN_post(z_i) W,    z the last block's tokens without the class token, W CLIP's projection

CLIP projects only the class token (Radford et al. 2021, arXiv:2103.00020); the same norm and projection of every patch
token are what BEiT v2's tokenizer learns to predict (Peng et al. 2022, arXiv:2208.06366, section 2.2): for ViT-B/16 at
224 pixels [B, 196, 512]. The network is open_clip's, run by the library's own `forward_intermediates`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Float16, UInt8
from torch import Tensor, nn

from models.encoders.arithmetic import arithmetic, normalised, require_pixels
from models.encoders.base import PatchEncoder
from models.encoders.preprocessing import Preprocessing
from models.errors import ModelError
from models.weights.digests import network_digest


class ClipViTPatchEncoder(PatchEncoder):
    """The patch tokens of a CLIP's Vision Transformer, in the space that images and captions share.

    Args:
        tower: open_clip's `VisionTransformer`, without an attentional pooler, filled with its weights.
        compile_trunk: trade a first slow batch for speed.

    Raises:
        ModelError: the patches do not fill the image, so that its edge would belong to none.
    """

    tower: Any
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        tower: nn.Module,
        *,
        name: str,
        preprocessing: Preprocessing,
        precision: str,
        compile_trunk: bool = False,
    ):
        super().__init__()
        self.tower = tower.eval().requires_grad_(False)
        self.name, self.preprocessing, self.precision = name, preprocessing, precision
        self.grid = _grid(self.tower, name)
        self.width = self.tower.ln_post.normalized_shape[0] if self.tower.proj is None else self.tower.proj.shape[1]
        on_meta = any(tensor.is_meta for tensor in tower.parameters())
        self.digest = "" if on_meta else network_digest(tower, _unshaped(self.tower))
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(3, 1, 1), persistent=False)
        self._run_tower = torch.compile(self._patch_tokens) if compile_trunk else self._patch_tokens

    @torch.no_grad()
    def forward(self, images: UInt8[Tensor, "B 3 side side"]) -> Float16[Tensor, "B N D"]:
        """Encode as `PatchEncoder.forward` says."""
        require_pixels(images, self.preprocessing.image_size, name=self.name)
        with arithmetic(self.precision, images.device):
            features = self._run_tower(normalised(images, self.mean, self.std))
        return features.to(torch.float16).contiguous()

    def _patch_tokens(self, pixels: Float[Tensor, "B 3 side side"]) -> Float[Tensor, "B N D"]:
        output = self.tower.forward_intermediates(
            pixels, indices=1, normalize_intermediates=True, intermediates_only=True, output_fmt="NLC"
        )
        tokens = output["image_intermediates"][0]
        return tokens if self.tower.proj is None else tokens @ self.tower.proj


def _grid(tower: Any, name: str) -> tuple[int, int]:
    if any(size % patch for size, patch in zip(tower.image_size, tower.patch_size, strict=True)):
        raise ModelError(f"{name}: patches of {tower.patch_size} pixels do not fill an image of {tower.image_size}")
    rows, columns = tower.grid_size
    return rows, columns


def _unshaped(tower: Any) -> Mapping[str, object]:
    """Return what features depend on beyond the names and shapes of tensors; it is the same in every block."""
    block = tower.transformer.resblocks[0]
    activation = block.mlp.gelu
    return {
        "heads": block.attn.num_heads,
        "activation": type(activation).__name__,
        "approximate": getattr(activation, "approximate", "none"),
        "norm_epsilon": tower.ln_post.eps,
    }
