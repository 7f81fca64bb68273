"""Stage `tokenize_images`: every patch of every image gets a token, whatever the tokenizer.

Features and the search for the nearest centroid or code are one pass on the device: an image leaves it as 392 bytes of
tokens instead of 1.6 MB of features. Finished shards are parts of their own; when the last is there they are assembled
into the Zarr token store, so no two writers ever share one of its files, and shards may follow the order in which a
source is read fast.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from models.kmeans.statistics import codebook_statistics
from models.options import Options
from models.tokenizers.registry import name_of_tokens, tokenizer_of
from pipeline.data.bad_images import require_allowed
from pipeline.data.decoding_options import DecodingOptions
from pipeline.data.inputs import Images, Network
from pipeline.data.known_checksums import ChecksumSources
from pipeline.data.stored_squares import KeptSquares
from pipeline.encoding.network_facts import NetworkFacts, facts_of
from pipeline.engine.disk_space import require_space
from pipeline.engine.errors import PipelineError
from pipeline.engine.fingerprint import defining_options
from pipeline.engine.settings import Settings
from pipeline.engine.stage import Given, Made, Source, Stage, recipe_of
from pipeline.engine.tracker import TrackedRun
from pipeline.stages.records import ImportedTokensRecord, TokensRecord
from storage import image_records
from storage.artifact import Artifact, Built, Recipe, beginnings, read_intact
from storage.codebook_file import read_codebook
from storage.files import bytes_below
from storage.image_index import ImageIndex
from storage.shards import ShardFolder
from storage.token_store import NO_TOKEN, write_token_store

_PART = "tokens"
_DIGESTS = {  # attribute of the store: input of the stage
    "image_index": "images",
    "codebook": "codebook",
    "encoder_weights": "encoder",
    "tokenizer_weights": "tokenizer",
}


@dataclass(frozen=True)
class TokenizeImages(Stage):
    """Write the token store of an image index: uint16 [images, patches], and the status of every image.

    Attributes:
        tokenizer: a patch encoder, or a tokenizer that brings its codes with it.
        codebook: the centroids of a patch encoder's features; None for the others.
        features: what the codebook was made from, if that is at hand: the images have to be those that it read.
        squares: of the same images, which are left for the stage `store_squares` while they are decoded.
    """

    NAME: ClassVar[str] = TokensRecord.STAGE

    tokenizer: Network[Any]
    images: Images
    decoding: DecodingOptions
    codebook: Source | None = None
    features: Source | None = None
    squares: KeptSquares | None = None

    def recipe(self, made: Made) -> Recipe:
        """Raises ModelError when the weights cannot be loaded, or the codebook is for features of another width."""
        chosen = self._choice(made)
        definition = {"decoding": defining_options(self.decoding), **chosen.definition}
        return recipe_of(self, definition, images=made[self.images.index].digest, **chosen.digests)

    def build(self, made: Made, folder: Path, run: TrackedRun) -> Built:
        """Raises PipelineError when too many images are bad, the data set changed, or a feature is not finite."""
        from pipeline.encoding.encode import EncodingPass
        from pipeline.encoding.shard_job import ShardJob
        from pipeline.encoding.squares import SquareShards
        from pipeline.encoding.tokens import TokenEncoding

        chosen, recipe, images, settings = self._choice(made), made.recipe(self), made[self.images.index], made.settings
        network, index = chosen.network, ImageIndex.read(images.path)
        encoding = TokenEncoding(chosen.options, network.digest, chosen.codebook)
        shards = ShardFolder(folder, recipe.fingerprint)
        known = ChecksumSources.of(images, settings.layout, [made.get(self.features)])
        source = self.images.source_in(made)
        with self._squares_beside(made, len(index)) as left:
            beside = SquareShards(left, self.squares.square) if self.squares and left else None
            job = ShardJob(images.path, source, self.decoding, encoding, _PART, shards, settings, known, beside)
            encoded = EncodingPass(job, index, np.arange(len(index)))
            encoded.run("tokenize images", made, run)
        counts = np.zeros(chosen.vocabulary, np.int64)
        write_token_store(
            folder,
            _counted(shards, [shard for shard, _ in encoded.work()], counts),
            images=len(index),
            patches=network.patches,
            attributes=_attributes(chosen, recipe, index),
        )
        np.save(folder / "counts.npy", counts)
        shards.remove(_PART)
        records = image_records.read_image_records(folder)
        record = TokensRecord(
            images=len(records),
            bad_images=len(image_records.bad_images(records)),
            vocabulary=len(counts),
            encoder=chosen.encoder,
            parameters=network.parameters,
            **asdict(codebook_statistics(counts)),
        )
        return record.built(encoded.notes(settings))

    def accept(self, artifact: Artifact) -> None:
        require_allowed(TokensRecord.of(artifact).bad_images, self.decoding, artifact.path)

    @contextmanager
    def _squares_beside(self, made: Made, images: int) -> Iterator[ShardFolder | None]:
        """Hold what is begun of the square store; yields None where no squares are wanted, or they are there.

        Raises:
            PipelineError: the disk is too small for them.
        """
        if self.squares is None:
            yield None
            return
        recipe = self.squares.recipe(made[self.images.index].digest)
        with beginnings(made.settings.layout, recipe) as folder:
            if folder is not None:
                needed = self.squares.bytes(images) - bytes_below(folder)
                require_space(folder, needed, self.squares.words(images))
            yield None if folder is None else ShardFolder(folder, recipe.fingerprint)

    def _choice(self, made: Made) -> "_Choice":
        options = self.tokenizer.options_in(made)
        return made.once((self, "choice"), lambda: _choose(options, made.get(self.codebook), made.settings))


@dataclass(frozen=True)
class _Choice:
    """A tokenizer that is loaded where images are encoded.

    Attributes:
        codebook: the artifact with the centroids of a patch encoder's features.
        definition: what defines it.
        digests: of what it is made from.
        encoder: what people call its network.
    """

    options: Options
    network: NetworkFacts
    codebook: Path | None
    definition: Mapping[str, object]
    digests: Mapping[str, str]
    encoder: str

    @property
    def vocabulary(self) -> int:
        return self.network.outputs if self.codebook is None else read_codebook(self.codebook).vocabulary

    @property
    def name(self) -> str:
        """Of its tokens."""
        return self.network.name if self.codebook is None else name_of_tokens(self.options)


def _choose(options: Options, codebook: Artifact | None, settings: Settings) -> _Choice:
    network = facts_of(options, settings)
    if not tokenizer_of(options).clusters:
        return _Choice(
            options,
            network,
            None,
            definition={"tokenizer": network.name, "encoder": network.definition},
            digests={"tokenizer": network.digest},
            encoder=getattr(options, "checkpoint", network.name),
        )
    if codebook is None:
        raise PipelineError(
            f"tokenize_images: the features of {type(options).__name__} need a codebook, none was given"
        )
    return _Choice(
        options,
        network,
        codebook.path,
        definition={"encoder": network.definition},
        digests={"encoder": network.digest, "codebook": codebook.digest},
        encoder=network.name,
    )


def _counted(
    shards: ShardFolder, work: Sequence[int], counts: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield rows, tokens and status of every shard; adds each token's occurrences to `counts` [K]."""
    for shard in work:
        part, records = shards.read(_PART, shard), shards.read(image_records.PART, shard)
        tokens = part["tokens"].combine_chunks().flatten().to_numpy().reshape(len(part), -1)
        status = records["status"].to_numpy()
        counts += np.bincount(tokens[status == 0].reshape(-1), minlength=len(counts))
        yield part["row"].to_numpy(), tokens, status


def _attributes(tokenizer: _Choice, recipe: Recipe, index: ImageIndex) -> dict[str, object]:
    return {
        "tokenizer": tokenizer.name,
        "vocabulary": tokenizer.vocabulary,
        "grid": tokenizer.network.definition["grid"],
        "no_token": NO_TOKEN,
        **{name: recipe.inputs[made_from] for name, made_from in _DIGESTS.items() if made_from in recipe.inputs},
        "classes": list(index.classes),
        **recipe.options,
    }


@dataclass(frozen=True)
class GivenTokens(Given):
    """A token store that was made earlier, or imported, and that somebody names."""

    path: Path

    def read(self) -> Artifact:
        """Check every byte.

        Raises:
            ArtifactMissing: there is no artifact, or one of another stage.
            ArtifactDamaged: a file is not what was published.
        """
        remedy = "tokens that were given are not rebuilt: copy them again"
        return read_intact(self.path, TokensRecord.STAGE, ImportedTokensRecord.STAGE, remedy=remedy)
