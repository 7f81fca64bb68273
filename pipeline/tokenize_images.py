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

import numpy as np
import pyarrow as pa
import torch

from models.clip import ClipOptions
from models.kmeans_statistics import codebook_statistics
from models.preprocessing import Preprocessing
from models.raw_patches import RawPatchOptions
from models.tokenizers.base import Tokenizer
from models.tokenizers.kclip import KClipTokenizer
from pipeline.data.image_batches import DecodingOptions, ImageBatch, require_allowed
from pipeline.data.known_checksums import ChecksumPlaces
from pipeline.data.sources.base import ImageSourceOptions
from pipeline.encode import EncodingPass, refuse_non_finite
from pipeline.errors import PipelineError
from pipeline.fingerprint import defining_options, recipe
from pipeline.networks import NetworkOptions, encoder_for, network_definition, tokenizer_for
from pipeline.settings import Settings
from pipeline.tracker import TrackedRun
from pipeline.unit_job import UnitJob
from pipeline.workspace import StageResult, Workspace
from storage import image_records
from storage.artifact import Artifact, Built
from storage.codebook_file import read_codebook
from storage.image_index import ImageIndex
from storage.token_store import NO_TOKEN, write_token_store
from storage.units import UnitFolder

STAGE = "tokenize_images"
VERSION = 1
_PART = "tokens"
_DIGESTS = {  # attribute of the store: input of the stage
    "image_index": "images",
    "codebook": "codebook",
    "encoder_weights": "encoder",
    "tokenizer_weights": "tokenizer",
}


TokenizerOptions = ClipOptions | RawPatchOptions | NetworkOptions


def tokenize_images(
    tokenizer: TokenizerOptions,
    *,
    images: Artifact,
    source: ImageSourceOptions,
    decoding: DecodingOptions,
    codebook: Artifact | None = None,
    features: Artifact | None = None,
    workspace: Workspace,
) -> StageResult:
    """Write the token store of an image index: uint16 [images, patches], and the status of every image.

    Args:
        tokenizer: a patch encoder, or a tokenizer that brings its codes with it.
        codebook: the centroids of a patch encoder's features; None for the others.
        features: what the codebook was made from, if that is at hand: the images have to be those that it read.

    Raises:
        PipelineError: too many images are bad, the data set changed, or a feature is not finite.
        ModelError: the weights cannot be loaded, or the codebook was made for features of another width.
    """
    chosen = _choose(tokenizer, codebook, workspace.settings)
    index = ImageIndex.read(images.path)
    definition = {"decoding": defining_options(decoding), **chosen.definition}
    inputs = {"images": images.digest, **chosen.digests}
    made_from = recipe(STAGE, VERSION, definition, **inputs)

    def build(folder: Path, run: TrackedRun) -> Built:
        tokenizer = chosen.encoding.tokenizer(workspace.settings)
        units = UnitFolder(folder, made_from.fingerprint)
        known = ChecksumPlaces.of(images, workspace.settings.layout, [features])
        job = UnitJob(images.path, source, decoding, chosen.encoding, _PART, units, workspace.settings, known)
        encoded = EncodingPass(job, index, np.arange(len(index)))
        encoded.run("tokenize images", workspace, run)
        counts = np.zeros(tokenizer.vocabulary, np.int64)
        write_token_store(
            folder,
            _counted(units, encoded, counts),
            images=len(index),
            patches=tokenizer.grid[0] * tokenizer.grid[1],
            attributes=_attributes(tokenizer, definition, inputs, index),
        )
        np.save(folder / "counts.npy", counts)
        for name in (_PART, "units"):
            shutil.rmtree(folder / name)
        return Built(_summary(folder, counts), {"encoder": chosen.encoder, **encoded.speed})

    result = workspace.artifact(made_from, build)
    require_allowed(result.artifact, decoding)
    return result


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
    """A tokenizer to be loaded: what defines it, the digests of what it is made from, and what people call its
    network."""

    definition: Mapping[str, object]
    digests: Mapping[str, str]
    encoder: str
    encoding: TokenEncoding


def _choose(options: TokenizerOptions, codebook: Artifact | None, settings: Settings) -> _Choice:
    if not isinstance(options, ClipOptions | RawPatchOptions):
        whole = tokenizer_for(options, settings)
        definition = {"tokenizer": whole.name, "encoder": network_definition(whole)}
        encoding = TokenEncoding(options, whole.digest, None)
        return _Choice(definition, {"tokenizer": whole.digest}, options.checkpoint, encoding)
    if codebook is None:
        raise PipelineError(
            f"tokenize_images: the features of {type(options).__name__} need a codebook, none was given"
        )
    encoder = encoder_for(options, settings)
    digests = {"encoder": encoder.digest, "codebook": codebook.digest}
    encoding = TokenEncoding(options, encoder.digest, codebook.path)
    return _Choice({"encoder": network_definition(encoder)}, digests, encoder.name, encoding)


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


def _attributes(
    tokenizer: Tokenizer, definition: Mapping[str, object], inputs: Mapping[str, str], index: ImageIndex
) -> dict[str, object]:
    return {
        "tokenizer": tokenizer.name,
        "vocabulary": tokenizer.vocabulary,
        "grid": list(tokenizer.grid),
        "no_token": NO_TOKEN,
        **{name: inputs[made_from] for name, made_from in _DIGESTS.items() if made_from in inputs},
        "classes": list(index.classes),
        **definition,
    }


def _summary(folder: Path, counts: np.ndarray) -> dict[str, float]:
    records = image_records.read_image_records(folder)
    return {
        "images": len(records),
        "bad_images": len(image_records.bad_images(records)),
        "vocabulary": len(counts),
        **asdict(codebook_statistics(counts)),
    }
