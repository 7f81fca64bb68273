"""Stage `tokenize_images`: every patch of every image gets a token, whatever the tokenizer.

Features and the search for the nearest centroid or code are one pass on the device: an image leaves it as 392 bytes of
tokens instead of 1.6 MB of features. Finished units are parts of their own; when the last is there they are assembled
into the Zarr token store, so no two writers ever share one of its shards, and units may follow the order in which a
source is read fast.
"""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch

from models.clip.options import ClipOptions
from models.encoders.options import RawPatchOptions
from models.encoders.preprocessing import Preprocessing
from models.kmeans.statistics import codebook_statistics
from models.tokenizers.base import Tokenizer
from models.tokenizers.kclip import KClipTokenizer
from pipeline.data.decoding_options import DecodingOptions
from pipeline.data.image_batches import ImageBatch, require_allowed
from pipeline.data.known_checksums import ChecksumPlaces
from pipeline.encoding.encode import EncodingPass, refuse_non_finite
from pipeline.encoding.network_facts import facts_of
from pipeline.encoding.networks import NetworkOptions, encoder_for, tokenizer_for
from pipeline.encoding.unit_job import UnitJob
from pipeline.engine.errors import PipelineError
from pipeline.engine.fingerprint import defining_options
from pipeline.engine.settings import Settings
from pipeline.engine.stage import Made, Source, Stage, recipe_of
from pipeline.engine.tracker import TrackedRun
from pipeline.stages.inputs import Images, Network
from storage import image_records
from storage.artifact import Artifact, Built, Recipe
from storage.codebook_file import read_codebook
from storage.image_index import ImageIndex
from storage.token_store import NO_TOKEN, write_token_store
from storage.units import UnitFolder

_PART = "tokens"
_DIGESTS = {  # attribute of the store: input of the stage
    "image_index": "images",
    "codebook": "codebook",
    "encoder_weights": "encoder",
    "tokenizer_weights": "tokenizer",
}


TokenizerOptions = ClipOptions | RawPatchOptions | NetworkOptions


@dataclass(frozen=True)
class TokenizeImages(Stage):
    """Write the token store of an image index: uint16 [images, patches], and the status of every image.

    Attributes:
        tokenizer: a patch encoder, or a tokenizer that brings its codes with it.
        codebook: the centroids of a patch encoder's features; None for the others.
        features: what the codebook was made from, if that is at hand: the images have to be those that it read.
    """

    NAME: ClassVar[str] = "tokenize_images"

    tokenizer: Network[Any]
    images: Images
    decoding: DecodingOptions
    codebook: Source | None = None
    features: Source | None = None

    def recipe(self, made: Made) -> Recipe:
        """Raises ModelError when the weights cannot be loaded, or the codebook is for features of another width."""
        chosen = self._choice(made)
        definition = {"decoding": defining_options(self.decoding), **chosen.definition}
        return recipe_of(self, definition, images=made[self.images.index].digest, **chosen.digests)

    def build(self, made: Made, folder: Path, run: TrackedRun) -> Built:
        """Raises PipelineError when too many images are bad, the data set changed, or a feature is not finite."""
        chosen, recipe, images, settings = self._choice(made), made.recipe(self), made[self.images.index], made.settings
        index, tokenizer = ImageIndex.read(images.path), chosen.encoding.tokenizer(settings)
        units = UnitFolder(folder, recipe.fingerprint)
        known = ChecksumPlaces.of(images, settings.layout, [made.get(self.features)])
        source = self.images.source_in(made)
        job = UnitJob(images.path, source, self.decoding, chosen.encoding, _PART, units, settings, known)
        encoded = EncodingPass(job, index, np.arange(len(index)))
        encoded.run("tokenize images", made, run)
        counts = np.zeros(tokenizer.vocabulary, np.int64)
        write_token_store(
            folder,
            _counted(units, encoded, counts),
            images=len(index),
            patches=tokenizer.grid[0] * tokenizer.grid[1],
            attributes=_attributes(tokenizer, recipe, index),
        )
        np.save(folder / "counts.npy", counts)
        for name in (_PART, "units"):
            shutil.rmtree(folder / name)
        made_by = {"encoder": chosen.encoder, "parameters": chosen.parameters}
        return Built(_summary(folder, counts), {**made_by, **encoded.notes(settings)})

    def accept(self, artifact: Artifact) -> None:
        require_allowed(artifact, self.decoding)

    def _choice(self, made: Made) -> "_Choice":
        options = self.tokenizer.options_in(made)
        return made.once((self, "choice"), lambda: _choose(options, made.get(self.codebook), made.settings))


@dataclass(frozen=True)
class TokenEncoding:
    """The `Encoding` of this stage: a tokenizer that is not loaded yet."""

    options: TokenizerOptions
    digest: str  # of its network
    codebook: Path | None

    def tokenizer(self, settings: Settings) -> Tokenizer:
        if not isinstance(self.options, ClipOptions | RawPatchOptions):
            return tokenizer_for(self.options, settings, digest=self.digest)
        assert self.codebook is not None
        encoder = encoder_for(self.options, settings, digest=self.digest)
        centroids = torch.from_numpy(read_codebook(self.codebook).centroids)
        return KClipTokenizer(encoder, centroids, name=_name_of(self.options))

    def load(self, index: ImageIndex, settings: Settings) -> "_Tokens":
        return _Tokens(self.tokenizer(settings), index)


@dataclass(frozen=True)
class _Tokens:
    """Turns a batch into its tokens; a bad image has NO_TOKEN everywhere."""

    tokenizer: Tokenizer
    index: ImageIndex

    @property
    def preprocessing(self) -> Preprocessing:
        return self.tokenizer.preprocessing

    @property
    def schema(self) -> pa.Schema:
        patches = self.tokenizer.grid[0] * self.tokenizer.grid[1]
        return pa.schema([("row", pa.int64()), ("tokens", pa.list_(pa.uint16(), patches))])

    def __call__(self, batch: ImageBatch) -> pa.RecordBatch:
        found = self.tokenizer(batch.pixels)
        refuse_non_finite(found >= 0, batch, self.index)
        tokens = np.where(batch.valid[:, None], found[: len(batch)].cpu().numpy(), NO_TOKEN).astype(np.uint16)
        lists = pa.FixedSizeListArray.from_arrays(pa.array(tokens.reshape(-1)), tokens.shape[1])
        return pa.record_batch([pa.array(batch.rows), lists], schema=self.schema)


@dataclass(frozen=True)
class _Choice:
    """A tokenizer to be loaded: what defines it, the digests of what it is made from, what people call its network, and
    how large that is."""

    definition: Mapping[str, object]
    digests: Mapping[str, str]
    encoder: str
    parameters: int
    encoding: TokenEncoding


def _choose(options: TokenizerOptions, codebook: Artifact | None, settings: Settings) -> _Choice:
    network = facts_of(options, settings)
    if not isinstance(options, ClipOptions | RawPatchOptions):
        definition = {"tokenizer": network.name, "encoder": network.definition}
        encoding = TokenEncoding(options, network.digest, None)
        digests = {"tokenizer": network.digest}
        return _Choice(definition, digests, options.checkpoint, network.parameters, encoding)
    if codebook is None:
        raise PipelineError(
            f"tokenize_images: the features of {type(options).__name__} need a codebook, none was given"
        )
    digests = {"encoder": network.digest, "codebook": codebook.digest}
    encoding = TokenEncoding(options, network.digest, codebook.path)
    return _Choice({"encoder": network.definition}, digests, network.name, network.parameters, encoding)


def _name_of(options: ClipOptions | RawPatchOptions) -> str:
    if isinstance(options, RawPatchOptions):
        return "pixels"
    return "kclip" if options.pretrained else "random"  # tokens of random weights should say so


def _counted(
    units: UnitFolder, encoded: EncodingPass, counts: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows, tokens and status of every unit; adds each token's occurrences to `counts` [K]."""
    for unit, _ in encoded.work():
        part, records = units.read(_PART, unit), units.read(image_records.PART, unit)
        tokens = part["tokens"].combine_chunks().flatten().to_numpy().reshape(len(part), -1)
        status = records["status"].to_numpy()
        counts += np.bincount(tokens[status == 0].reshape(-1), minlength=len(counts))
        yield part["row"].to_numpy(), tokens, status


def _attributes(tokenizer: Tokenizer, recipe: Recipe, index: ImageIndex) -> dict[str, object]:
    return {
        "tokenizer": tokenizer.name,
        "vocabulary": tokenizer.vocabulary,
        "grid": list(tokenizer.grid),
        "no_token": NO_TOKEN,
        **{name: recipe.inputs[made_from] for name, made_from in _DIGESTS.items() if made_from in recipe.inputs},
        "classes": list(index.classes),
        **recipe.options,
    }


def _summary(folder: Path, counts: np.ndarray) -> dict[str, float]:
    records = image_records.read_image_records(folder)
    return {
        "images": len(records),
        "bad_images": len(image_records.bad_images(records)),
        "vocabulary": len(counts),
        **asdict(codebook_statistics(counts)),
    }
