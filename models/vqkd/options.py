"""The choices of a VQ-KD: which one makes tokens, and how one is trained."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from models.options import Options, PathText

RELEASE = "https://github.com/addf400/files/releases/download/BEiT-v2"
PUBLISHED = {
    "vqkd_encoder_base_decoder_3x768x12_clip": f"{RELEASE}/vqkd_encoder_base_decoder_3x768x12_clip-d5036aa7.pth",
    "vqkd_encoder_base_decoder_1x768x12_clip": f"{RELEASE}/vqkd_encoder_base_decoder_1x768x12_clip-d93179da.pth",
    "vqkd_encoder_base_decoder_1x768x12_dino": f"{RELEASE}/vqkd_encoder_base_decoder_1x768x12_dino-663c55d7.pth",
}

HEAD_WIDTH = 64  # of every attention head; no tensor's shape tells


@dataclass(frozen=True)
class VQKDSizes:
    """What distinguishes one VQ-KD from another; by default the published ones."""

    width: int = 768
    depth: int = 12
    patch_size: int = 16
    vocabulary: int = 8192
    code_width: int = 32


class VQKDOptions(Options):
    """Which VQ-KD sees the images, and how."""

    checkpoint: PathText = "vqkd_encoder_base_decoder_3x768x12_clip"
    """A published name (vqkd_encoder_base_decoder_3x768x12_clip, ..._1x768x12_clip, ..._1x768x12_dino), fetched once;
    a checkpoint file; a URL whose file name ends in the first 8 hex digits of the SHA-256; or `fit`, with which a build
    trains one first."""
    image_size: int = Field(default=224, ge=1, le=4096)
    """Side of the input in pixels: what the checkpoint was trained at, its positions allow no other."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp16"
    """Arithmetic of the encoder on a GPU, part of the result; on a CPU "fp16" computes in fp32. Codes are float32."""


class VQKDNetworkOptions(Options):
    """The shape of a VQ-KD; by default the published one."""

    image_size: int = Field(default=224, ge=1, le=4096)
    """Side of the input in pixels. Patches per side must be the teacher's."""

    patch_size: int = Field(default=16, ge=1, le=4096)
    """Side of a patch in pixels."""

    width: int = Field(default=768, gt=0, le=8192, multiple_of=HEAD_WIDTH)
    """Of encoder and decoder, a multiple of 64: every attention head is 64 wide."""

    depth: int = Field(default=12, ge=1, le=1000)
    """Blocks of the encoder."""

    decoder_depth: int = Field(default=3, ge=1, le=1000)
    """Blocks of the decoder, which is thrown away: with fewer of them the codes have to say more (published: 3, 1)."""

    vocabulary: int = Field(default=8192, ge=2, le=65_535)
    """Codes."""

    code_width: int = Field(default=32, ge=2, le=8192)
    """Numbers in a code."""

    @property
    def sizes(self) -> VQKDSizes:
        """The same as the checkpoint's module names it."""
        return VQKDSizes(self.width, self.depth, self.patch_size, self.vocabulary, self.code_width)


class VQKDCodebookOptions(Options):
    """How the codes of a VQ-KD follow its patches."""

    decay: float = Field(default=0.99, ge=0, lt=1)
    """What remains of a code, and of its measured usage, after a step."""

    commitment: float = Field(default=1.0, ge=0, le=1e6)
    """Weight of the squared distance between a patch's vector and its code, which moves the vector."""

    revive_below: float = Field(default=0.1, ge=0, le=0.5)
    """A code that is used less than this part of an even share counts as dead and takes half of a much used one; 0:
    dead codes stay dead."""

    start_iterations: int = Field(default=10, ge=0, le=10_000)
    """k-means iterations on the untrained network's vectors, from which the codes start."""
