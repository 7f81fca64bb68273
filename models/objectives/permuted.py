"""What MIM, PIM and MaPeT share: patches in a random order, of which the first are shown and the rest predicted.

Putting the patches of every image in its own order first makes everything after it the same for all images: targets
are the last rows, and who sees whom is one constant matrix instead of one per image.
"""

from abc import abstractmethod

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from models.masking import permutations
from models.objectives.base import Objective, ObjectiveOutput
from models.vit.trunk import drop_path_scales, embed, embed_masks, encode, take


class PermutedObjective(Objective):
    """Subclasses say which rows the network gets and which of them are keys.

    Attributes:
        keys: the first so many rows give keys and values.
        visible: which row attends to which key; None: everybody to all.
    """

    keys: int
    visible: Bool[Tensor, "R C"] | None

    @abstractmethod
    def arrange(self, content: Float[Tensor, "B S D"], masks: Float[Tensor, "B T D"]) -> Float[Tensor, "B R D"]:
        """The rows of the network; its last T are read, one per target.

        Args:
            content: class token, then all patches in permuted order.
            masks: the mask token at the position of each target.
        """

    def order(self, seeds: Int64[Tensor, " B"]) -> Int64[Tensor, "B N"]:
        """A uniformly random order."""
        return permutations(seeds, self.patches)

    def forward(
        self, images: Float[Tensor, "B 3 H W"], tokens: Int[Tensor, "B N"], seeds: Int64[Tensor, " B"]
    ) -> ObjectiveOutput:
        order = self.order(seeds)
        features = self.features(images, order, scales=drop_path_scales(self.backbone, seeds))
        return self.score(features, tokens.gather(1, order[:, self.shown :]))

    def predict(
        self,
        images: Float[Tensor, "B 3 H W"],
        order: Int64[Tensor, "B N"],
        *,
        scales: Float[Tensor, "L 2 B"] | None = None,
    ) -> Float[Tensor, "B T K"]:
        """As the base says; `scales` of stochastic depth can be given."""
        return self.head(self.features(images, order, scales=scales))

    def features(
        self,
        images: Float[Tensor, "B 3 H W"],
        order: Int64[Tensor, "B N"],
        *,
        scales: Float[Tensor, "L 2 B"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """What the head reads, by target."""
        rows = self.rows(images, order)
        return encode(self.backbone, rows, keys=self.keys, visible=self.visible, read=self.targets, scales=scales)

    def rows(self, images: Float[Tensor, "B 3 H W"], order: Int64[Tensor, "B N"]) -> Float[Tensor, "B R D"]:
        """What enters the first block."""
        class_row, patches = embed(self.backbone, images)
        masks = embed_masks(self.backbone, self.mask_token).expand(len(images), -1, -1)
        content = torch.cat([class_row, take(patches, order)], dim=1)
        return self.arrange(content, take(masks, order[:, self.shown :]))
