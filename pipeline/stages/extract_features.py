"""Stage `extract_features`: patch features of the images, of which a keyed 2 % sample is kept for k-means.

Why two passes over the images (this one and `tokenize_images`) instead of storing every feature: ImageNet's 251 million
features of RN50x64 are 2.06 TB, and computing them a second time is cheaper than writing, guarding and reading those.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch

from models.encoders.base import PatchEncoder
from models.encoders.preprocessing import Preprocessing
from pipeline.data.decoding_options import DecodingOptions
from pipeline.data.image_batches import ImageBatch, require_allowed
from pipeline.data.known_checksums import ChecksumPlaces
from pipeline.encoding.encode import EncodingPass, refuse_non_finite
from pipeline.encoding.network_facts import facts_of
from pipeline.encoding.networks import EncoderOptions, encoder_for, parameter_count
from pipeline.encoding.sampling import SamplePlan, plan_sample
from pipeline.encoding.unit_job import UnitJob
from pipeline.engine.errors import PipelineError
from pipeline.engine.fingerprint import defining_options
from pipeline.engine.preflight import require_space
from pipeline.engine.settings import Settings
from pipeline.engine.stage import Made, Stage, recipe_of
from pipeline.engine.tracker import TrackedRun
from pipeline.stages.extract_features_options import FeatureOptions
from pipeline.stages.inputs import Images, Network
from storage import feature_sample
from storage.artifact import Artifact, Built, Recipe
from storage.image_index import ImageIndex
from storage.image_records import bad_images, read_image_records
from storage.units import UnitFolder


@dataclass(frozen=True)
class ExtractFeatures(Stage):
    """Encode the images once; write the sampled features, and what became of each image.

    Attributes:
        encoder: a CLIP, or none: the pixels of the patches themselves.
    """

    NAME: ClassVar[str] = "extract_features"

    options: FeatureOptions
    images: Images
    decoding: DecodingOptions
    encoder: Network[Any]

    def recipe(self, made: Made) -> Recipe:
        """Raises ModelError when the encoder cannot be loaded."""
        network = facts_of(self.encoder.options_in(made), made.settings)
        definition = {
            **defining_options(self.options),
            "decoding": defining_options(self.decoding),
            "encoder": network.definition,
        }
        return recipe_of(self, definition, images=made[self.images.index].digest, encoder=network.digest)

    def build(self, made: Made, folder: Path, run: TrackedRun) -> Built:
        """Encode them.

        Raises:
            PipelineError: a split does not exist, the disk is too small, too many images are bad, the data set changed,
                a feature is not finite.
        """
        options, images, settings = self.options, made[self.images.index], made.settings
        encoder = self.encoder.options_in(made)
        network = encoder_for(encoder, settings)
        index = ImageIndex.read(images.path)
        rows = _rows_of(index, options.splits)
        planned, patches = len(_plan(options, index, network)), network.grid[0] * network.grid[1]
        vectors = len(rows) * patches if options.keep == "all" else planned
        require_space(folder, vectors * network.width * 2, f"storing {vectors:,} features of {network.width} x 16 bits")
        encoding = FeatureEncoding(options, encoder, network.digest)
        units = UnitFolder(folder, made.recipe(self).fingerprint)
        known, source = ChecksumPlaces.of(images, settings.layout), self.images.source_in(made)
        job = UnitJob(images.path, source, self.decoding, encoding, feature_sample.PART, units, settings, known)
        encoded = EncodingPass(job, index, rows)
        encoded.run("extract features", made, run)
        made_by = {"encoder": network.name, "parameters": parameter_count(network)}
        return Built(_summary(folder, planned=planned), {**made_by, **encoded.notes(settings)})

    def accept(self, artifact: Artifact) -> None:
        require_allowed(artifact, self.decoding)


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


def _summary(folder: Path, *, planned: int) -> dict[str, int]:
    sample = feature_sample.FeatureSample(folder)
    records = read_image_records(folder)
    return {
        "images": len(records),
        "bad_images": len(bad_images(records)),
        "planned_vectors": planned,
        "sampled_vectors": len(sample),
        "width": sample.width,
    }
