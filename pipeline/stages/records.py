"""What each stage says of its result, in the order of the pipeline: the fields that are on the disk, in MLflow and in
reports, each under one name.

They stand beside the stages and not in their files, as a stage does not import another: a report tells of all of them.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pipeline.engine.stage_record import Noted, Others, Record


class _Drawn(Record):
    train_images: int
    val_images: int

    @property
    def images(self) -> int:
        return self.train_images + self.val_images


class DemoImagesRecord(_Drawn):
    """Of the demo's pictures."""

    STAGE: ClassVar[str] = "make_demo_images"


class DemoSegmentationRecord(_Drawn):
    """Of the demo's pictures with a class for every pixel."""

    STAGE: ClassVar[str] = "make_demo_segmentation"


class IndexRecord(Record):
    """Of an image index.

    Attributes:
        classes: how many; 0 without labels.
        bytes: of all images, as far as the source tells.
        splits: images of each split.
        source: where the images lay.
        understood: what was found there, in words; `notes`: what is odd about it.
    """

    STAGE: ClassVar[str] = "index_images"

    images: int
    classes: int
    shards: int
    bytes: int
    splits: Annotated[Mapping[str, int], Others("_images")]
    source: Annotated[str, Noted()] = ""
    understood: Annotated[str, Noted()] = ""
    notes: Annotated[tuple[str, ...], Noted()] = ()


class DemoClipRecord(Record):
    """Of the demo's CLIP.

    Attributes:
        zero_shot_accuracy: share of the `val_images` that it classifies by captions.
    """

    STAGE: ClassVar[str] = "train_demo_clip"

    zero_shot_accuracy: float
    steps: int
    val_images: int


class FeaturesRecord(Record):
    """Of a feature sample.

    Attributes:
        planned_vectors: how many were to be sampled; bad images have none, so `sampled_vectors` may be fewer.
        width: numbers of a vector.
        encoder, parameters: the network's name and size.
    """

    STAGE: ClassVar[str] = "extract_features"

    images: int
    bad_images: int
    planned_vectors: int
    sampled_vectors: int
    width: int
    encoder: Annotated[str, Noted()] = ""
    parameters: Annotated[int | None, Noted()] = None


class _Vocabulary(Record):
    """How evenly a vocabulary is used (`models.kmeans.statistics.CodebookStatistics`)."""

    vocabulary: int
    used_share: float
    perplexity: float
    largest_share: float
    p1: float
    p50: float
    p99: float

    @property
    def used(self) -> int:
        """How many tokens occur."""
        return round(self.used_share * self.vocabulary)


class CodebookRecord(_Vocabulary):
    """Of a k-means codebook: the `vectors` that were clustered, and how evenly they use its centroids."""

    STAGE: ClassVar[str] = "fit_codebook"

    width: int
    vectors: int
    iterations: int
    inertia: float


class VQKDRecord(Record):
    """Of a VQ-KD that was trained here: the last point of its curves, and how evenly tokens of training images use its
    codes. A curve may have no point, or one that is no number, which is left out.

    Attributes:
        teacher: what it learned from, in words.
    """

    STAGE: ClassVar[str] = "fit_vqkd"

    vocabulary: int
    train_images: int
    val_images: int
    bad_images: int
    steps: int
    loss: float | None = None
    cosine: float | None = None
    commitment: float | None = None
    val_loss: float | None = None
    val_cosine: float | None = None
    val_commitment: float | None = None
    used_share: float
    perplexity: float
    largest_share: float
    teacher: Annotated[str, Noted()] = ""

    @property
    def best_cosine(self) -> float | None:
        """In validation, if there was one, else in training."""
        return self.cosine if self.val_cosine is None else self.val_cosine


class TokensRecord(_Vocabulary):
    """Of a token store, whatever the tokenizer.

    Attributes:
        encoder, parameters: name (or file) and size of the network that saw the images.
    """

    STAGE: ClassVar[str] = "tokenize_images"

    images: int
    bad_images: int
    encoder: Annotated[str, Noted()] = ""
    parameters: Annotated[int | None, Noted()] = None

    @property
    def good_images(self) -> int:
        return self.images - self.bad_images


class ImportedTokensRecord(TokensRecord):
    """Of a token store that was joined from published tokens; `bad_images` are those that have none."""

    STAGE: ClassVar[str] = "import_tokens"


class SquaresRecord(Record):
    """Of a square store."""

    STAGE: ClassVar[str] = "store_squares"

    images: int
    bad_images: int


class PretrainRecord(Record):
    """Of a pre-training: what it learned from, and the last point of its curves.

    Attributes:
        targets: patches of an image that are predicted, of so many `patches`.
        images_without_tokens: of the training split, which were left out.
    """

    STAGE: ClassVar[str] = "pretrain"

    targets: int
    patches: int
    train_images: int
    val_images: int
    images_without_tokens: int
    steps: int
    loss: float | None = None
    token_loss: float | None = None
    token_accuracy: float | None = None
    val_token_loss: float | None = None
    val_token_accuracy: float | None = None


class EvaluateRecord(Record):
    """Of an evaluation.

    Attributes:
        scores: in percent, by the names of the protocol's metrics.
        what: what was evaluated, and how, in words.
        parameters: size of the network, where none was trained.
    """

    STAGE: ClassVar[str] = "evaluate"

    scores: Annotated[Mapping[str, float], Others()]
    val_images: int
    what: str
    parameters: Annotated[int | None, Noted()] = None


class ReportRecord(Record):
    """Of a report: of how many tokens how many patches are shown."""

    STAGE: ClassVar[str] = "report"

    tokens_shown: int
    patches_shown: int
