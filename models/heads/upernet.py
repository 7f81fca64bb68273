"""UperNet's parts: a feature pyramid for a plain Vision Transformer, the head that reads it, and an auxiliary head.

A Vision Transformer has one resolution; the pyramid makes four of it (BEiT's neck, arXiv:2106.08254), g patches a side:

    four blocks' rows  ->  maps of 4g, 2g, g, g/2         transposed convolutions, identity, max pooling
    top level: pooled to 1, 2, 3, 6 squares a side, each 1x1 conv, enlarged, all joined, 3x3 conv
    levels below: 1x1 conv, plus the enlarged level above, 3x3 conv
    all levels at 4g, joined: 3x3 conv, dropout, 1x1 conv -> class logits

after Xiao et al., "Unified Perceptual Parsing", arXiv:1807.10221. The auxiliary head is a fully convolutional one
(Long et al., arXiv:1411.4038) that only helps the training (Zhao et al., arXiv:1612.01105).

Dropout leaves out whole channels of an image, drawn from its seed, so that nothing depends on a global generator.

New convolutions are drawn as mmsegmentation draws them: normal of He et al. by fan-out, classifiers normal of 0.01,
transposed convolutions PyTorch's default; all from the generator that is passed.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from models.masking import uniforms

DROPOUT_STREAM, AUXILIARY_DROPOUT_STREAM = 20, 21  # of random numbers, apart from all others in `models`


class ConvNormReLU(nn.Sequential):
    """A convolution that keeps the map's size, without bias, BatchNorm, ReLU."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, generator: torch.Generator) -> None:
        conv = nn.utils.skip_init(nn.Conv2d, inputs, outputs, kernel, padding=kernel // 2, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        super().__init__(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class ViTFeaturePyramid(nn.Module):
    """Four maps of one resolution made into four resolutions, from fine to coarse; the width stays."""

    def __init__(self, width: int, *, generator: torch.Generator) -> None:
        super().__init__()
        finest = (_doubling(width, generator), nn.BatchNorm2d(width), nn.GELU(), _doubling(width, generator))
        steps = (nn.Sequential(*finest), _doubling(width, generator), nn.Identity(), nn.MaxPool2d(2))
        self.steps = nn.ModuleList(steps)

    def forward(self, maps: Sequence[Float[Tensor, "B D g g"]]) -> list[Float[Tensor, "B D _ _"]]:
        """Return maps with sides 4g, 2g, g and g/2 (rounded down)."""
        return [step(each) for step, each in zip(self.steps, maps, strict=True)]


class UperNetHead(nn.Module):
    """Class logits at the resolution of the finest level.

    Attributes:
        pooled: the 1x1 convolution of each pooling scale.
        joined: 3x3, the poolings and the coarsest level itself.
        laterals, outputs: 1x1 and 3x3 of every level but the coarsest.
        fused: 3x3, all levels.
        classifier: 1x1.
    """

    def __init__(
        self,
        widths: Sequence[int],
        channels: int,
        classes: int,
        *,
        pool_scales: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
        generator: torch.Generator,
    ) -> None:
        super().__init__()

        def conv(inputs: int, kernel: int) -> ConvNormReLU:
            return ConvNormReLU(inputs, channels, kernel=kernel, generator=generator)

        self.pool_scales = tuple(pool_scales)
        self.pooled = nn.ModuleList(conv(widths[-1], 1) for _ in self.pool_scales)
        self.joined = conv(widths[-1] + len(self.pool_scales) * channels, 3)
        self.laterals = nn.ModuleList(conv(width, 1) for width in widths[:-1])
        self.outputs = nn.ModuleList(conv(channels, 3) for _ in widths[:-1])
        self.fused = conv(len(widths) * channels, 3)
        self.dropout = dropout
        self.classifier = _classifier(channels, classes, generator)

    def forward(
        self, levels: Sequence[Float[Tensor, "B _ _ _"]], seeds: Int64[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B K h w"]:
        """Join levels of any sizes, finest first; the result has the first one's size.

        Args:
            seeds: of the images, for dropout in training mode; without them nothing is left out.
        """
        above = self._pool(levels[-1])
        merged = [above]
        for lateral, level in zip(reversed(self.laterals), reversed(levels[:-1]), strict=True):
            above = lateral(level) + resized(above, level.shape[-2:])
            merged.insert(0, above)
        outputs = [output(level) for output, level in zip(self.outputs, merged[:-1], strict=True)]
        size = levels[0].shape[-2:]
        fused = self.fused(torch.cat([resized(output, size) for output in [*outputs, merged[-1]]], dim=1))
        if self.training and seeds is not None:
            fused = without_channels(fused, seeds, self.dropout, DROPOUT_STREAM)
        return self.classifier(fused)

    def _pool(self, top: Float[Tensor, "B D h w"]) -> Float[Tensor, "B channels h w"]:
        size = top.shape[-2:]
        pooled = [
            resized(conv(F.adaptive_avg_pool2d(top, scale)), size)
            for scale, conv in zip(self.pool_scales, self.pooled, strict=True)
        ]
        return self.joined(torch.cat([top, *pooled], dim=1))


class FCNHead(nn.Module):
    """Class logits from one map: a 3x3 convolution, dropout, a 1x1 convolution (Long et al., arXiv:1411.4038)."""

    def __init__(
        self, width: int, channels: int, classes: int, *, dropout: float = 0.1, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.conv = ConvNormReLU(width, channels, kernel=3, generator=generator)
        self.dropout = dropout
        self.classifier = _classifier(channels, classes, generator)

    def forward(
        self, level: Float[Tensor, "B D h w"], seeds: Int64[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B K h w"]:
        """Score each cell's classes; `seeds` of the images are for dropout in training mode: none without them."""
        maps = self.conv(level)
        if self.training and seeds is not None:
            maps = without_channels(maps, seeds, self.dropout, AUXILIARY_DROPOUT_STREAM)
        return self.classifier(maps)


def without_channels(
    maps: Float[Tensor, "B channels h w"], seeds: Int64[Tensor, " B"], share: float, stream: int
) -> Float[Tensor, "B channels h w"]:
    """Set each channel of each image to 0 with chance `share`; what stays is scaled up, which keeps the mean."""
    stays = uniforms(seeds, maps.shape[1], stream) >= share
    return maps * (stays / (1 - share)).to(maps.dtype)[:, :, None, None]


def _doubling(width: int, generator: torch.Generator) -> nn.ConvTranspose2d:
    """Build the convolution that makes 2x2 cells of each."""
    conv = nn.utils.skip_init(nn.ConvTranspose2d, width, width, kernel_size=2, stride=2)
    nn.init.kaiming_uniform_(conv.weight, a=math.sqrt(5), generator=generator)
    bound = 1 / math.sqrt(4 * width)
    nn.init.uniform_(conv.bias, -bound, bound, generator=generator)
    return conv


def _classifier(channels: int, classes: int, generator: torch.Generator) -> nn.Conv2d:
    conv = nn.utils.skip_init(nn.Conv2d, channels, classes, 1)
    nn.init.normal_(conv.weight, std=0.01, generator=generator)
    nn.init.zeros_(conv.bias)
    return conv


def resized(maps: Float[Tensor, "B channels _ _"], size: Sequence[int]) -> Float[Tensor, "B channels _ _"]:
    """Resize bilinearly, corners not aligned."""
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
