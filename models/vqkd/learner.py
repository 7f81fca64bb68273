"""Training of a VQ-KD (BEiT v2, Peng et al. 2022, arXiv:2208.06366, section 2.1): codes from which a decoder can tell
what a teacher sees at each patch.

    z = l2(task(encoder(x))),  q = the code nearest to z,  o = task'(decoder(z + sg[q - z]))
    loss = mean(1 - cos(o, teacher(x))) + commitment * mean((sg[q] - z)^2)

The gradient passes the choice of the code as if it were not there (sg[] has none); the codes move by averages instead
(`models/vqkd/codebook.py`). Vectors, scores and losses are float32 whatever autocast is around: codes are short and
many, rounding would choose others. Encoder and decoder are those of `models/vqkd/checkpoint.py`, so what is trained
here is read there.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64, UInt8
from timm.models.vision_transformer import Attention, VisionTransformer
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from models.encoders.arithmetic import arithmetic, require_pixels
from models.encoders.base import PatchEncoder
from models.errors import ModelError
from models.objectives.base import ObjectiveOutput, truncated_normal
from models.vqkd.checkpoint import VQKDParts, build_decoder, build_task_layer, build_vqkd, published_layout
from models.vqkd.codebook import EmaCodebook, Total
from models.vqkd.options import VQKDCodebookOptions, VQKDNetworkOptions


def require_same_grid(options: VQKDNetworkOptions, teacher: PatchEncoder) -> None:
    """Raise ModelError unless the student cuts an image into the teacher's patches."""
    side = options.image_size // options.patch_size
    if options.image_size % options.patch_size or teacher.grid != (side, side):
        rows, columns = teacher.grid
        raise ModelError(
            f"{teacher.name} sees {rows} x {columns} patches of {teacher.preprocessing.image_size} pixels, the VQ-KD "
            f"cuts {options.image_size} pixels into patches of {options.patch_size}; expected as many: set "
            f"fit_vqkd.network.image_size to {rows} times fit_vqkd.network.patch_size, or take another teacher"
        )


class VQKDLearner(nn.Module):
    """`(pixels uint8 [B, 3, side, side], seeds int64 [B]) -> ObjectiveOutput`; `side` is the teacher's image size.

    A student of another image size sees the same pixels, resized on the device. In evaluation mode the loss is the
    same and the codebook stays as it is.

    Args:
        teacher: frozen, on the device that the learner will be on. It is no submodule: neither checkpoints nor
            DistributedDataParallel should carry it.
        seed: of the weights; the global random state is left as it was found.

    Raises:
        ModelError: teacher and student cut images into different patches.
    """

    def __init__(
        self, options: VQKDNetworkOptions, codebook: VQKDCodebookOptions, teacher: PatchEncoder, *, seed: int
    ) -> None:
        require_same_grid(options, teacher)
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs too
            parts = build_vqkd(options.sizes, image_size=options.image_size, device="cpu")
            self.decoder = build_decoder(options.sizes, grid=teacher.grid[0], depth=options.decoder_depth, device="cpu")
            self.decode_task_layer = build_task_layer(options.width, teacher.width)
        self.encoder, self.encode_task_layer = parts.encoder, parts.task_layer
        generator = torch.Generator().manual_seed(seed)
        for layer in (*self.encode_task_layer[::2], *self.decode_task_layer[::2]):
            _draw(layer, generator)
        self.codebook = EmaCodebook(options.vocabulary, options.code_width, codebook, seed=seed)
        self._teachers = (teacher,)  # a tuple: a module would become a submodule
        for attention in self.modules():
            if isinstance(attention, Attention):
                attention.qkv.bias.register_hook(_without_keys)

    @property
    def teacher(self) -> PatchEncoder:
        return self._teachers[0]

    def forward(self, pixels: UInt8[Tensor, "B 3 side side"], seeds: Int64[Tensor, " B"]) -> ObjectiveOutput:
        """Return the loss of a batch. `seeds` are not needed: nothing is drawn here.

        Raises:
            ModelError: not 8-bit, or not of the teacher's image size.
        """
        wanted = self._taught(pixels).float()
        z = self.vectors(pixels)
        with torch.no_grad(), arithmetic("fp32", z.device):
            ids = self.codebook.nearest(z.detach().flatten(0, 1))
            # A vector that is not finite has no code; the loss is not finite then, and the trainer stops.
            ids = ids.clamp_(min=0)
            q = self.codebook.codes[ids].view_as(z)
        if self.training:
            self.codebook.count(z.detach().flatten(0, 1), ids)
        told = self.decode_task_layer(_patches(self.decoder, _as_image(z + (q - z).detach(), self.teacher.grid)))
        cosine = F.cosine_similarity(told.float(), wanted, dim=-1).mean()
        commitment = F.mse_loss(z, q)
        metrics = {"cosine": cosine.detach(), "commitment": commitment.detach()}
        metrics |= {"used_share": self.codebook.used_share, "perplexity": self.codebook.perplexity}
        return ObjectiveOutput(1 - cosine + self.codebook.options.commitment * commitment, metrics)

    def vectors(self, pixels: UInt8[Tensor, "B 3 side side"]) -> Float32[Tensor, "B N code"]:
        """Return what is quantised: a unit vector for each patch, in raster order."""
        features = _patches(self.encoder, self._student_pixels(pixels))
        with arithmetic("fp32", pixels.device):
            return F.normalize(self.encode_task_layer(features.float()), dim=-1)

    @torch.no_grad()
    def tokens(self, pixels: UInt8[Tensor, "B 3 side side"]) -> Int64[Tensor, "B N"]:
        """Return the codes of the patches; -1 where a vector is not finite."""
        z = self.vectors(pixels)
        with arithmetic("fp32", z.device):
            return self.codebook.nearest(z.flatten(0, 1)).view(z.shape[:2])

    def finish_step(self, total: Total) -> None:
        """Move the codes by the patches of all processes since the last time."""
        self.codebook.finish_step(total)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Group the parameters as timm does: matrices decay; biases, norms, positions and class tokens do not."""
        towers = {"encoder": self.encoder, "decoder": self.decoder}
        spared = [f"{name}.{own}" for name, tower in towers.items() for own in tower.no_weight_decay()]
        groups: list[dict[str, Any]] = param_groups_weight_decay(self, weight_decay, no_weight_decay_list=spared)
        return groups

    def checkpoint_state(self) -> dict[str, Tensor]:
        """Return all that was trained, in the published layout, on the CPU."""
        return published_layout(
            VQKDParts(self.encoder, self.encode_task_layer, self.codebook.codes),
            decoder=self.decoder,
            decoder_task_layer=self.decode_task_layer,
            usage=self.codebook.usage,
        )

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Take less memory and a third more time, by the method that timm's networks have."""
        self.encoder.set_grad_checkpointing(enable)
        self.decoder.set_grad_checkpointing(enable)

    @torch.compiler.disable  # it is compiled by itself where that is wanted, and has no gradient
    def _taught(self, pixels: UInt8[Tensor, "B 3 side side"]) -> Float[Tensor, "B N teacher"]:
        return self.teacher(pixels)

    def _student_pixels(self, pixels: UInt8[Tensor, "B 3 side side"]) -> Float[Tensor, "B 3 H W"]:
        """Resize to the student's size and normalise to [-1, 1], as the tokenizer will."""
        require_pixels(pixels, self.teacher.preprocessing.image_size, name="VQ-KD")
        images, side = pixels.float(), self.encoder.patch_embed.img_size[0]
        if side != images.shape[-1]:
            images = F.interpolate(images, size=(side, side), mode="bicubic", antialias=True).clamp(0, 255)
        return (images / 255 - 0.5) / 0.5


def _patches(tower: VisionTransformer, images: Float[Tensor, "B channels H W"]) -> Float[Tensor, "B N D"]:
    """Return the patches after the last block and its norm, without the class token."""
    return tower.fc_norm(tower.forward_features(images)[:, tower.num_prefix_tokens :])


def _as_image(z: Float[Tensor, "B N code"], grid: tuple[int, int]) -> Float[Tensor, "B channels H W"]:
    return z.transpose(1, 2).unflatten(2, grid)


def _draw(layer: nn.Linear, generator: torch.Generator) -> None:
    """Draw the weight truncated normal, bias 0, as timm draws the layers of its networks."""
    with torch.no_grad():
        layer.weight.copy_(truncated_normal(tuple(layer.weight.shape), generator))
        layer.bias.zero_()


def _without_keys(gradient: Tensor) -> Tensor:
    """Set the gradient of the keys' bias to 0: the published network has none.

    Its true gradient is 0 too, but AdamW would make whole steps of the rounding errors that stand in its place.
    """
    queries, keys, values = gradient.chunk(3)
    return torch.cat([queries, torch.zeros_like(keys), values])
