"""Stock timm Vision Transformers, built from options and a seed.

Class token, learned 1-D positions, LayerScale, stochastic depth growing linearly with depth; nothing is added or
replaced, so the trained weights load strictly into `timm.create_model`. The shapes T, S and B are the paper's
(DeiT's, arXiv:2012.12877); `vit_demo` is small enough for a CPU.

Initialisation is timm's, which is the released MaPeT's too: linear weights, positions and tokens from a normal
distribution of 0.02 cut at +-2, biases 0, the class token from a normal distribution of 1e-6, the patch convolution
as PyTorch does it.
"""

import torch
from timm.models.vision_transformer import VisionTransformer

from models.errors import ModelError
from models.vit.options import SHAPES, BackboneOptions


def build_backbone(options: BackboneOptions, *, seed: int, classes: int = 0) -> VisionTransformer:
    """Build a freshly initialised backbone on the CPU: the same weights for the same options and seed.

    The global random state is left as it was found.

    Args:
        classes: 0 for the backbone alone; else it ends in the mean of its patches, a norm and a head (`fc_norm`, `head`
            of timm's `global_pool="avg"`) in place of the final norm.

    Raises:
        ModelError: the image is not a whole number of patches.
    """
    if options.image_size % options.patch_size:
        raise ModelError(
            f"backbone.image_size {options.image_size} is not a multiple of backbone.patch_size {options.patch_size}; "
            "choose sizes that divide"
        )
    shape = SHAPES[options.name]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs too
        return VisionTransformer(
            img_size=options.image_size,
            patch_size=options.patch_size,
            embed_dim=shape.width,
            depth=shape.depth,
            num_heads=shape.heads,
            num_classes=classes,
            global_pool="avg" if classes else "token",
            init_values=options.layer_scale or None,
            drop_path_rate=options.drop_path_rate,
        )
