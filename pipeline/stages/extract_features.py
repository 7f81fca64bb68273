"""Stage `extract_features`: patch features of the images, of which a keyed 2 % sample is kept for k-means.

Why two passes over the images (this one and `tokenize_images`) instead of storing every feature: ImageNet's 251 million
features of RN50x64 are 2.06 TB, and computing them a second time is cheaper than writing, guarding and reading those.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pipeline.data.bad_images import require_allowed
from pipeline.data.decoding_options import DecodingOptions
from pipeline.data.inputs import Images, Network
from pipeline.data.known_checksums import ChecksumSources
from pipeline.encoding.feature_options import FeatureOptions
from pipeline.encoding.network_facts import NetworkFacts, facts_of
from pipeline.engine.disk_space import require_space
from pipeline.engine.fingerprint import defining_options
from pipeline.engine.stage import Made, Stage, recipe_of
from pipeline.engine.tracker import TrackedRun
from pipeline.stages.records import FeaturesRecord
from storage import feature_sample
from storage.artifact import Artifact, Built, Recipe
from storage.image_index import ImageIndex
from storage.image_records import bad_images, read_image_records
from storage.shards import ShardFolder


@dataclass(frozen=True)
class ExtractFeatures(Stage):
    """Encode the images once; write the sampled features, and what became of each image.

    Attributes:
        encoder: a CLIP, or none: the pixels of the patches themselves.
    """

    NAME: ClassVar[str] = FeaturesRecord.STAGE

    options: FeatureOptions
    images: Images
    decoding: DecodingOptions
    encoder: Network[Any]

    def recipe(self, made: Made) -> Recipe:
        """Raises ModelError when the encoder cannot be loaded."""
        network = self._network(made)
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
        from pipeline.encoding.encode import EncodingPass
        from pipeline.encoding.features import FeatureEncoding, plan_of, rows_of
        from pipeline.encoding.shard_job import ShardJob

        options, images, settings = self.options, made[self.images.index], made.settings
        encoder, network, index = self.encoder.options_in(made), self._network(made), ImageIndex.read(images.path)
        rows = rows_of(index, options.splits)
        planned = len(plan_of(options, index, patches=network.patches))
        vectors, width = len(rows) * network.patches if options.keep == "all" else planned, network.outputs
        require_space(folder, vectors * width * 2, f"storing {vectors:,} features of {width} x 16 bits")
        encoding = FeatureEncoding(options, encoder, network.digest)
        shards = ShardFolder(folder, made.recipe(self).fingerprint)
        known, source = ChecksumSources.of(images, settings.layout), self.images.source_in(made)
        job = ShardJob(images.path, source, self.decoding, encoding, feature_sample.PART, shards, settings, known)
        encoded = EncodingPass(job, index, rows)
        encoded.run("extract features", made, run)
        sample, records = feature_sample.FeatureSample(folder), read_image_records(folder)
        record = FeaturesRecord(
            images=len(records),
            bad_images=len(bad_images(records)),
            planned_vectors=planned,
            sampled_vectors=len(sample),
            width=sample.width,
            encoder=network.name,
            parameters=network.parameters,
        )
        return record.built(encoded.notes(settings))

    def accept(self, artifact: Artifact) -> None:
        require_allowed(FeaturesRecord.of(artifact).bad_images, self.decoding, artifact.path)

    def _network(self, made: Made) -> NetworkFacts:
        """Return what is to be known of the encoder; it is loaded where images are encoded."""
        return made.once((self, "network"), lambda: facts_of(self.encoder.options_in(made), made.settings))
