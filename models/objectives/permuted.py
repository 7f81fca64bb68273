"""What MIM, PIM and MaPeT share: patches in a random order, of which the first are shown and the rest predicted.

Putting the patches of every image in its own order first makes everything after it the same for all images: predicted
patches are the last rows, and who sees whom is one constant matrix instead of one per image.
"""

from abc import abstractmethod

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from models.masking import permutations
from models.objectives.base import Objective, ObjectiveOutput
from models.vit.attention import chosen_way
from models.vit.trunk import drop_path_scales, embed, embed_masks, encode, take
from models.vit.windows import SlidingWindow


class PermutedObjective(Objective):
    """Subclasses say which rows the network gets and which of them are keys.

    Attributes:
        keys: the first so many rows give keys and values.
        attention_mask: which row attends to which key; None: all to all.
        window: the same of the rows as `in_windows` orders them; None: it is no sliding window.
    """

    keys: int
    attention_mask: Bool[Tensor, "Q S"] | None
    window: SlidingWindow | None = None

    @abstractmethod
    def network_rows(
        self, content: Float[Tensor, "B content D"], masks: Float[Tensor, "B P D"]
    ) -> Float[Tensor, "B Q D"]:
        """Join the rows of the network; the last P are read, one per predicted patch.

        Args:
            content: class token, then all patches in permuted order.
            masks: the mask token at the position of each predicted patch.
        """

    def in_windows(self, rows: Float[Tensor, "B Q D"]) -> Float[Tensor, "B Q D"]:
        """Order the rows so that each sees consecutive keys; the same rows stay keys, and the queries last."""
        return rows

    def order(self, seeds: Int64[Tensor, " B"]) -> Int64[Tensor, "B N"]:
        """Draw a uniformly random order."""
        return permutations(seeds, self.patches)

    def forward(
        self, images: Float[Tensor, "B 3 H W"], tokens: Int[Tensor, "B N"], seeds: Int64[Tensor, " B"]
    ) -> ObjectiveOutput:
        order = self.order(seeds)
        features = self.features(images, order, scales=drop_path_scales(self.backbone, seeds))
        return self.score(features, tokens.gather(1, order[:, self.context :]))

    def predict(
        self,
        images: Float[Tensor, "B 3 H W"],
        order: Int64[Tensor, "B N"],
        *,
        scales: Float[Tensor, "L 2 B"] | None = None,
    ) -> Float[Tensor, "B P K"]:
        """Predict as the base says; `scales` of stochastic depth can be given."""
        return self.head(self.features(images, order, scales=scales))

    def features(
        self,
        images: Float[Tensor, "B 3 H W"],
        order: Int64[Tensor, "B N"],
        *,
        scales: Float[Tensor, "L 2 B"] | None = None,
    ) -> Float[Tensor, "B P D"]:
        """Return what the head reads of each predicted patch."""
        rows, window = self.rows(images, order), self.window if chosen_way() else None
        if window is not None:
            rows = self.in_windows(rows)
        seen = self.attention_mask if window is None else window
        return encode(self.backbone, rows, keys=self.keys, attention_mask=seen, read=self.predicted, scales=scales)

    def rows(self, images: Float[Tensor, "B 3 H W"], order: Int64[Tensor, "B N"]) -> Float[Tensor, "B Q D"]:
        """Return what enters the first block."""
        class_row, patches = embed(self.backbone, images)
        masks = embed_masks(self.backbone, self.mask_token).expand(len(images), -1, -1)
        content = torch.cat([class_row, take(patches, order)], dim=1)
        return self.network_rows(content, take(masks, order[:, self.context :]))
