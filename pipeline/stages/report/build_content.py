"""What a report reads of a build's artifacts beside their records: index, codebook, tokens; each thing once."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from models.encoders.preprocessing import Preprocessing
from pipeline.stages.records import CodebookRecord, IndexRecord, TokensRecord
from pipeline.stages.report.page_parts import BadImage
from pipeline.stages.report.token_statistics import CountedImages, TokenStatistics, count_tokens, images_to_count
from storage.artifact import Artifact
from storage.codebook_file import Codebook, read_codebook
from storage.image_index import ImageIndex, ImageStatus
from storage.image_records import bad_images, read_image_records
from storage.token_store import TokenStore


@dataclass(frozen=True)
class BuildContent:
    """The content of a build's artifacts, `{stage: artifact}`; read when first asked for.

    `split`: whose images tokens are counted on; "" takes the one with the most labelled images.
    """

    stages: Mapping[str, Artifact]
    split: str = ""

    @cached_property
    def index(self) -> ImageIndex:
        return ImageIndex.read(self.stages[IndexRecord.STAGE].path)

    @cached_property
    def codebook(self) -> Codebook | None:
        """None where no k-means was run."""
        fitted = self.stages.get(CodebookRecord.STAGE)
        return read_codebook(fitted.path) if fitted else None

    @cached_property
    def store(self) -> TokenStore:
        return TokenStore(self.stages[TokensRecord.STAGE].path)

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
    def tokens(self) -> np.ndarray:
        """uint16 [images, patches]."""
        return self.store.load()

    @cached_property
    def counted(self) -> CountedImages:
        """The images behind `statistics`."""
        return images_to_count(self.index, self.store.status, split=self.split)

    @cached_property
    def statistics(self) -> TokenStatistics:
        """What every token has to do with classes."""
        labels, vocabulary = self.index.labels, self.store.vocabulary
        return count_tokens(self.tokens, self.counted, labels=labels, vocabulary=vocabulary)

    @property
    def largest_class_share(self) -> float:
        """The share of the most frequent class among the images behind `statistics`, which have labels."""
        return float(np.bincount(self.index.labels[self.counted.rows]).max() / len(self.counted))

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
