"""Features of patches while images are encoded: only those that are kept leave the device."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from models.encoders.base import PatchEncoder
from models.encoders.preprocessing import Preprocessing
from models.options import Options
from pipeline.data.image_batches import ImageBatch
from pipeline.encoding.encode import refuse_non_finite
from pipeline.encoding.feature_options import FeatureOptions
from pipeline.encoding.networks import encoder_for
from pipeline.encoding.sampling import SamplePlan, plan_sample
from pipeline.engine.errors import PipelineError
from pipeline.engine.settings import Settings
from storage import feature_sample
from storage.image_index import ImageIndex


@dataclass(frozen=True)
class FeatureEncoding:
    """The `Encoding` of the stage `extract_features`."""

    options: FeatureOptions
    encoder: Options
    digest: str  # of the encoder

    def load(self, index: ImageIndex, settings: Settings) -> "_ChosenFeatures":
        network = encoder_for(self.encoder, settings, digest=self.digest)
        plan = plan_of(self.options, index, patches=network.grid[0] * network.grid[1])
        return _ChosenFeatures(network, index, plan, self.options.keep == "all")


@dataclass(frozen=True)
class _ChosenFeatures:
    """Picks a batch's planned vectors, still on the device: only they are copied to the host."""

    network: PatchEncoder
    index: ImageIndex
    plan: SamplePlan
    keep_all: bool

    @property
    def preprocessing(self) -> Preprocessing:
        return self.network.preprocessing

    @property
    def schema(self) -> pa.Schema:
        return feature_sample.schema(self.network.width)

    def __call__(self, batch: ImageBatch) -> pa.RecordBatch:
        features = self.network(batch.pixels)
        refuse_non_finite(torch.isfinite(features).all(-1), batch, self.index)
        sampled = self._sampled(batch.rows, patches=features.shape[1])
        stored = (sampled | self.keep_all) & batch.valid[:, None]
        images, patches = np.nonzero(stored)
        at = (torch.from_numpy(axis).to(features.device) for axis in (images, patches))
        vectors = features[*at].cpu().numpy()
        return feature_sample.record_batch(batch.rows[images], patches, sampled[images, patches], vectors)

    def _sampled(self, rows: np.ndarray, *, patches: int) -> np.ndarray:
        """Return which patches of these rows the plan samples, bool [B, N]."""
        sampled = np.zeros((len(rows), patches), bool)
        first = np.searchsorted(self.plan.positions, rows, "left")
        last = np.searchsorted(self.plan.positions, rows, "right")
        for place, (start, stop) in enumerate(zip(first, last, strict=True)):
            sampled[place, self.plan.patches[start:stop]] = True
        return sampled


def plan_of(options: FeatureOptions, index: ImageIndex, *, patches: int) -> SamplePlan:
    """Return the sample, by rows of the index. Every process makes it anew: 3 seconds for ImageNet, 60 MB to send."""
    rows = rows_of(index, options.splits)
    plan = plan_sample(index.image_ids[rows], patches=patches, fraction=options.sample_fraction, seed=options.seed)
    return SamplePlan(rows[plan.positions], plan.patches)


def rows_of(index: ImageIndex, splits: tuple[str, ...]) -> np.ndarray:
    """Return the rows of the splits, ascending. Raises PipelineError for a split that is not there."""
    if missing := [split for split in splits if split not in index.splits]:
        raise PipelineError(
            f"the data set has no split {missing[0]!r}; it has {', '.join(index.splits) or 'no images'}: set "
            f"features.splits to some of these"
        )
    return np.sort(np.concatenate([index.rows_of_split(split) for split in dict.fromkeys(splits)]))
