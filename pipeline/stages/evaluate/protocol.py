"""What every evaluation protocol is given, and what it has in common with the others."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from timm.data import create_transform
from torch import Tensor, nn

from models.clip.options import ClipOptions
from pipeline.data.known_checksums import UnchangedImages, open_unchanged
from pipeline.data.labelled_images import Erase, LabelledImages, LabelledSplits, Mix, Transform, choose_labelled
from pipeline.data.share import Share
from pipeline.data.source_options import ImageSourceOptions
from pipeline.engine.batches import Batch, in_groups, on_device
from pipeline.engine.memory import Halving, Splittable
from pipeline.engine.processes import Processes
from pipeline.engine.settings import Settings
from pipeline.engine.threads import threads_for
from pipeline.engine.words import counted
from pipeline.stages.evaluate.evaluation_options import EvaluationOptions, LabelledOptions
from pipeline.stages.evaluate.scores import score, write_scores
from pipeline.stages.evaluate.subject import Subject
from pipeline.training.loop import Feed, Reporter, Trainer
from pipeline.training.options import TrainingOptions
from storage.artifact import Artifact
from storage.image_index import ImageIndex, ImageStatus
from storage.square_store import SquareStore
from storage.token_store import TokenStore

Judged = TypeVar("Judged", bound=Splittable)
_TOP = (1, 5)


@dataclass(frozen=True)
class EvaluationJob:
    """Everything that one process needs to know to do its part of an evaluation.

    Attributes:
        tokens: of the images, where there are any; also tells which images cannot be decoded.
        clip: the encoder that made the tokens, for the protocol that classifies with it.
        squares: folder of the square store of the images, decoded exactly, where there is one.
        keep_weights: whether what is trained is kept, by a protocol that can.
    """

    options: EvaluationOptions
    subject: Subject
    images: Artifact
    source: ImageSourceOptions
    tokens: Artifact | None
    folder: Path
    settings: Settings
    clip: ClipOptions | None = None
    squares: Path | None = None
    keep_weights: bool = False

    def splits(self, *, fraction: float = 1.0) -> LabelledSplits:
        """Return the labelled rows that the protocol uses, without images that could not be tokenized. `fraction`: of
        each class's training images."""
        assert isinstance(self.options, LabelledOptions)
        return choose_labelled(
            ImageIndex.read(self.images.path),
            train=self.options.train_split,
            val=self.options.val_split,
            fraction=fraction,
            usable=None if self.tokens is None else TokenStore(self.tokens.path).status == ImageStatus.VALID,
        )

    def feed(
        self,
        splits: LabelledSplits,
        *,
        train: Transform,
        crop_pct: float,
        mix: Mix | None = None,
        erase: Erase | None = None,
        repeats: int = 1,
    ) -> LabelledImages:
        """Return what feeds the protocol: images that `train` makes, and of each image that is looked at or judged
        the centre, `crop_pct` of its shorter side; all of it is the central square, which may be kept."""
        index, side = ImageIndex.read(self.images.path), self.subject.backbone.image_size
        return LabelledImages(
            index,
            self.unchanged(index),
            splits,
            train_transform=train,
            val_transform=centre_crop(side, crop_pct),
            mix=mix,
            erase=erase,
            image_size=side,
            seed=self.options.seed,
            settings=self.settings.of_one_process(),
            repeats=repeats,
            squares=self._squares(side) if crop_pct == 1 else None,
        )

    def _squares(self, side: int) -> SquareStore | None:
        """Return kept squares that are what `centre_crop` makes where it leaves nothing out."""
        store = None if self.squares is None else SquareStore.open(self.squares)
        return store if store is not None and store.image_size == side else None

    def unchanged(self, index: ImageIndex) -> UnchangedImages:
        """Return the images themselves, each compared with what it was when it was read before."""
        return open_unchanged(self.source, self.images, len(index), self.settings.layout, self.tokens)

    def train(
        self,
        learner: nn.Module,
        feed: Feed,
        training: TrainingOptions,
        processes: Processes,
        reporter: Reporter,
    ) -> dict[str, Any]:
        """Do this process's part of training the learner; returns how fast it went."""
        return Trainer(
            learner,
            feed,
            training,
            seed=self.options.seed,
            folder=self.folder,
            settings=self.settings,
            processes=processes,
            reporter=reporter,
        ).run()


def judged_images(train: int, val: int) -> dict[str, int]:
    """Return the part "judging" of most protocols: what was trained looks once at every validation image."""
    return {"judging": val}


@dataclass(frozen=True)
class Metric:
    """A score of a protocol, as it is called wherever results stand side by side.

    Attributes:
        score: its name among the protocol's scores.
        name: of the number; those that the paper gives have the name of its file (`pipeline/paper/results.csv`).
            A data set that results name stands in square brackets behind it where the name has `[{}]`.
        title: in words, of the number that a figure shows of the protocol; "" for the others.
    """

    score: str
    name: str
    title: str = ""


@dataclass(frozen=True)
class Protocol:
    """How something is evaluated; each stands at the end of its own file.

    Attributes:
        title: what a page calls it.
        metrics: its scores; one that is left out goes by its name.
        run: one process's part; the first one writes the scores, and all return notes on how it went.
        parts: how much it does of each part that it notes beside a training, on so many training and validation images.
    """

    title: str
    metrics: Sequence[Metric]
    run: Callable[[EvaluationJob, Processes, Reporter], dict[str, Any]]
    parts: Callable[[int, int], Mapping[str, int]] = judged_images


def centre_crop(image_size: int, crop_pct: float) -> Transform:
    """Return timm's evaluation transform, without the normalisation."""
    transform: Transform = create_transform(image_size, interpolation="bicubic", crop_pct=crop_pct, normalize=False)
    return transform


def random_crop(image_size: int, smallest: float, flip: float, *, auto_augment: str = "") -> Transform:
    """Return timm's training transform, without the normalisation: a crop that shows at least so much of the image,
    perhaps mirrored, and what a policy of timm does to it."""
    transform: Transform = create_transform(
        image_size,
        is_training=True,
        scale=(smallest, 1.0),
        hflip=flip,
        color_jitter=0.0,
        auto_augment=auto_augment or None,
        interpolation="bicubic",
        normalize=False,
    )
    return transform


class MemoryFeed:
    """Batches of what is at hand: `load(rows)` gives a learner's inputs at once, without workers."""

    repeats = 1

    def __init__(
        self, load: Callable[[np.ndarray], tuple[Tensor, ...]], train_rows: np.ndarray, val_rows: np.ndarray
    ) -> None:
        self._load, self.train_rows, self.val_rows = load, train_rows, val_rows

    def training(self, shares: Iterable[Share]) -> Iterator[Batch]:
        return self.validation(share.rows for share in shares)

    def validation(self, groups: Iterable[np.ndarray]) -> Iterator[Batch]:
        return (Batch(rows, self._load(rows)) for rows in groups)


def own_batches(feed: Feed, rows: np.ndarray, processes: Processes, *, size: int) -> Iterator[Batch]:
    """Yield this process's share of the rows without augmentation, on its device."""
    return on_device(feed.validation(in_groups(processes.share(rows), size)), processes.device)


@torch.no_grad()
def judged_together(
    network: nn.Module,
    batches: Iterable[Judged],
    judge: Callable[[Judged], Tensor],
    processes: Processes,
    *,
    total: int,
) -> Tensor:
    """Return what `judge` finds of every row: each process judges its share on its own device, and all get all of it.

    Args:
        network: what judges; a small one computes in one thread.
        batches: this process's share (`Processes.share`) of `total` rows, in order, on its device.
        judge: [B, ...] of a batch; of halves of one that does not fit in memory.

    Returns:
        [total, ...] on the CPU, in the order of the rows, the same in every process.
    """
    compute = Halving(judge)
    with threads_for(network):
        found = [of_piece.cpu() for batch in batches for _, of_piece in compute(batch)]
    return processes.joined(found, total)


def top_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Return bool [B, 2]: whether the label is the first, and whether it is among the first five, of the logits [B,
    K]."""
    return torch.stack([top_k_correct(logits, labels, k) for k in _TOP], dim=1)


def top_k_correct(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Return bool [B]: whether the label is among the k largest logits [B, K]. Logits that are no numbers are wrong:
    sorted as the largest, they would make the first classes right."""
    best = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return (best == labels[:, None]).any(1) & ~logits.isnan().any(1)


def write_top_scores(folder: Path, correct: Tensor, classes: int, reading: str) -> None:
    """Write top-1 and top-5, and which images were right; `correct` bool [n, 2] as `top_correct` says."""
    judged: Mapping[int, np.ndarray] = dict(zip(_TOP, correct.numpy().T.copy(), strict=True))
    scores = [
        score(f"top{k}", right, reading, f"of {counted(classes, 'class', 'classes')}, always right" * (classes <= k))
        for k, right in judged.items()
    ]
    write_scores(folder, scores, {f"top{k}": right for k, right in judged.items()})
