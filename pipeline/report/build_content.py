"""What a report reads of a build's artifacts beside their records: index, codebook, tokens; each thing once."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from models.preprocessing import Preprocessing
from pipeline.report.codebook_pictures import TokenExamples, choose_examples
from pipeline.report.page import BadImage
from storage.artifact import Artifact
from storage.codebook_file import Codebook, read_codebook
from storage.image_index import ImageIndex, ImageStatus
from storage.image_records import bad_images, read_image_records
from storage.token_store import TokenStore


@dataclass(frozen=True)
class BuildContent:
    """The content of a build's artifacts, `{stage: artifact}`; read when first asked for."""

    stages: Mapping[str, Artifact]

    @cached_property
    def index(self) -> ImageIndex:
        return ImageIndex.read(self.stages["index_images"].path)

    @cached_property
    def codebook(self) -> Codebook:
        return read_codebook(self.stages["fit_codebook"].path)

    @cached_property
    def store(self) -> TokenStore:
        return TokenStore(self.stages["tokenize_images"].path)

    @cached_property
    def counts(self) -> np.ndarray:
        """Occurrences of each token, int64 [K]."""
        return np.load(self.store.path / "counts.npy", allow_pickle=False)

    @property
    def grid(self) -> tuple[int, int]:
        rows, columns = self.store.attributes["grid"]
        return rows, columns

    @property
    def preprocessing(self) -> Preprocessing:
        encoder = self.store.attributes["encoder"]
        return Preprocessing(
            encoder["image_size"], tuple(encoder["mean"]), tuple(encoder["std"]), encoder["interpolation"]
        )

    @cached_property
    def examples(self) -> tuple[TokenExamples, ...]:
        return choose_examples(
            self.store.load(), labels=self.index.labels, image_ids=self.index.image_ids, counts=self.counts
        )

    @cached_property
    def bad_images(self) -> list[BadImage]:
        return [
            BadImage(self.index.name(item["row"]), _kind(item["status"]), item["reason"])
            for item in bad_images(read_image_records(self.store.path)).to_pylist()
        ]

    @cached_property
    def bad_kinds(self) -> dict[str, int]:
        """Bad images per kind, most frequent first."""
        return dict(Counter(image.kind for image in self.bad_images).most_common())


def _kind(status: int) -> str:
    return ImageStatus(status).name.lower().replace("_", " ")
