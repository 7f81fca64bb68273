"""CLIP as a classifier that has seen no label: the class whose captions are most like the image.

    c_k = mean over templates t of T(t(k)) / |T(t(k))|,   guess = argmax_k  cos(I(x), c_k)

I and T are the towers, k a class name (Radford et al. 2021, arXiv:2103.00020, section 3.1).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from models.clip.encoder import Template, WholeClip, class_features
from models.encoders.arithmetic import arithmetic, normalised


class ZeroShotClassifier(nn.Module):
    """Compares images with the captions of classes; on the device that the CLIP is on.

    Attributes:
        preprocessing: the square of pixels `forward` wants, and the normalisation that it applies itself.
    """

    mean: Tensor
    std: Tensor
    classes: Tensor

    def __init__(
        self, clip: WholeClip, class_names: Sequence[str], templates: Sequence[Template], *, precision: str
    ) -> None:
        super().__init__()
        self.clip = clip.model
        self.preprocessing, self.precision = clip.preprocessing, precision
        device = next(clip.model.parameters()).device
        with arithmetic(precision, device):
            self.register_buffer("classes", class_features(clip, class_names, templates), persistent=False)
        for name in ("mean", "std"):
            values = torch.tensor(getattr(clip.preprocessing, name), device=device)
            self.register_buffer(name, values.view(3, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, images: UInt8[Tensor, "B 3 side side"]) -> Float[Tensor, "B classes"]:
        """Return the cosine similarity of 8-bit RGB images with each class; the CLIP must be in evaluation mode."""
        with arithmetic(self.precision, images.device):
            features = self.clip.encode_image(normalised(images, self.mean, self.std), normalize=True)
        return features.float() @ self.classes
