"""Stage `extract_features`: patch features of the images, of which a keyed 2 % sample is kept for k-means.

Why two passes over the images (this one and `tokenize_images`) instead of storing every feature: ImageNet's 251 million
features of RN50x64 are 2.06 TB, and computing them a second time is cheaper than writing, guarding and reading those.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field

from models.options import Options
from models.patch_encoder import PatchEncoder
from models.preprocessing import Preprocessing
from pipeline.data.image_batches import DecodingOptions, ImageBatch, require_allowed
from pipeline.data.known_checksums import ChecksumPlaces
from pipeline.data.sources.base import ImageSourceOptions
from pipeline.encode import EncodingPass, refuse_non_finite
from pipeline.errors import PipelineError
from pipeline.fingerprint import defining_options, recipe
from pipeline.networks import EncoderOptions, encoder_for, network_definition
from pipeline.preflight import require_space
from pipeline.sampling import SamplePlan, plan_sample
from pipeline.settings import Settings
from pipeline.tracker import TrackedRun
from pipeline.unit_job import UnitJob
from pipeline.workspace import StageResult, Workspace
from storage import feature_sample
from storage.artifact import Artifact, Built
from storage.image_index import ImageIndex
from storage.image_records import bad_images, read_image_records
from storage.units import UnitFolder

STAGE = "extract_features"
VERSION = 1


class FeatureOptions(Options):
    """Which patch features are kept."""

    sample_fraction: float = Field(default=0.02, gt=0, le=1)
    """Share of all patches that k-means clusters (the paper: 2 %)."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the keyed sample."""

    splits: tuple[str, ...] = Field(default=("train",), min_length=1)
    """Splits that are sampled; tokens are made for all of them."""

    keep: Literal["sample", "all"] = "sample"
    """`all` stores every feature of those splits (8 kB a patch for RN50x64: 2 TB for ImageNet)."""


def extract_features(
    options: FeatureOptions,
    *,
    images: Artifact,
    source: ImageSourceOptions,
    decoding: DecodingOptions,
    encoder: EncoderOptions,
    workspace: Workspace,
) -> StageResult:
    """Encode the images once; write the sampled features, and what became of each image.

    Args:
        encoder: a CLIP, or none: the pixels of the patches themselves.

    Raises:
        PipelineError: a split does not exist, the disk is too small, too many images are bad, the data set changed, a
            feature is not finite.
        ModelError: the encoder cannot be loaded.
    """
    network = encoder_for(encoder, workspace.settings)
    index = ImageIndex.read(images.path)
    rows = _rows_of(index, options.splits)
    definition = {
        **defining_options(options),
        "decoding": defining_options(decoding),
        "encoder": network_definition(network),
    }
    made_from = recipe(STAGE, VERSION, definition, images=images.digest, encoder=network.digest)

    def build(folder: Path, run: TrackedRun) -> Built:
        planned, patches = len(_plan(options, index, network)), network.grid[0] * network.grid[1]
        vectors = len(rows) * patches if options.keep == "all" else planned
        require_space(folder, vectors * network.width * 2, f"storing {vectors:,} features of {network.width} x 16 bits")
        encoding = FeatureEncoding(options, encoder, network.digest)
        units = UnitFolder(folder, made_from.fingerprint)
        known = ChecksumPlaces.of(images, workspace.settings.layout)
        job = UnitJob(images.path, source, decoding, encoding, feature_sample.PART, units, workspace.settings, known)
        encoded = EncodingPass(job, index, rows)
        encoded.run("extract features", workspace, run)
        return _summary(folder, encoded, planned=planned, encoder_name=network.name)

    result = workspace.artifact(made_from, build)
    require_allowed(result.artifact, decoding)
    return result


@dataclass(frozen=True)
class FeatureEncoding:
    """The `Encoding` of this stage."""

    options: FeatureOptions
    encoder: EncoderOptions
    digest: str  # of the encoder

    def load(self, index: ImageIndex, settings: Settings) -> "_ChosenFeatures":
        network = encoder_for(self.encoder, settings, digest=self.digest)
        return _ChosenFeatures(network, index, _plan(self.options, index, network), self.options.keep == "all")


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
        places, patches = np.nonzero(stored)
        at = (torch.from_numpy(axis).to(features.device) for axis in (places, patches))
        vectors = features[*at].cpu().numpy()
        return feature_sample.record_batch(batch.rows[places], patches, sampled[places, patches], vectors)

    def _sampled(self, rows: np.ndarray, *, patches: int) -> np.ndarray:
        """bool [B, N]."""
        sampled = np.zeros((len(rows), patches), bool)
        first = np.searchsorted(self.plan.positions, rows, "left")
        last = np.searchsorted(self.plan.positions, rows, "right")
        for place, (start, stop) in enumerate(zip(first, last, strict=True)):
            sampled[place, self.plan.patches[start:stop]] = True
        return sampled


def _plan(options: FeatureOptions, index: ImageIndex, network: PatchEncoder) -> SamplePlan:
    """The sample, by rows of the index. Every process makes it anew: 3 seconds for ImageNet, 60 MB to send."""
    rows, patches = _rows_of(index, options.splits), network.grid[0] * network.grid[1]
    plan = plan_sample(index.image_ids[rows], patches=patches, fraction=options.sample_fraction, seed=options.seed)
    return SamplePlan(rows[plan.positions], plan.patches)


def _rows_of(index: ImageIndex, splits: tuple[str, ...]) -> np.ndarray:
    if missing := [split for split in splits if split not in index.splits]:
        raise PipelineError(
            f"the data set has no split {missing[0]!r}; it has {', '.join(index.splits) or 'no images'}: set "
            f"features.splits to some of these"
        )
    return np.sort(np.concatenate([index.rows_of_split(split) for split in dict.fromkeys(splits)]))


def _summary(folder: Path, encoded: EncodingPass, *, planned: int, encoder_name: str) -> Built:
    sample = feature_sample.FeatureSample(folder)
    records = read_image_records(folder)
    summary = {
        "images": len(records),
        "bad_images": len(bad_images(records)),
        "planned_vectors": planned,
        "sampled_vectors": len(sample),
        "width": sample.width,
    }
    return Built(summary, {"encoder": encoder_name, **encoded.speed})
