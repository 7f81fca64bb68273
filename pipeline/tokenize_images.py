"""Stage `tokenize_images`: every patch of every image gets a token, whatever the tokenizer.

Features and the search for the nearest centroid or code are one pass on the device: an image leaves it as 392 bytes of
tokens instead of 1.6 MB of features. Finished units are parts of their own; when the last is there they are assembled
into the Zarr token store, so no two writers ever share one of its shards, and units may follow the order in which a
source is read fast.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from models.clip import ClipOptions
from models.kmeans_statistics import codebook_statistics
from models.raw_patches import RawPatchOptions
from models.tokenizers.base import Tokenizer
from models.tokenizers.kclip import KClipTokenizer
from pipeline.data.image_batches import DecodingOptions, ImageBatch, ImageSet, require_allowed
from pipeline.data.sources import open_source
from pipeline.data.sources.base import ImageSourceOptions
from pipeline.encode import (
    EncodingPass,
    NetworkOptions,
    encoder_for,
    network_definition,
    refuse_non_finite,
    tokenizer_for,
)
from pipeline.errors import PipelineError
from pipeline.fingerprint import defining_options, recipe
from pipeline.settings import Settings
from pipeline.tracker import TrackedRun
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
    workspace: Workspace,
) -> StageResult:
    """Write the token store of an image index: uint16 [images, patches], and the status of every image.

    Args:
        tokenizer: a patch encoder, or a tokenizer that brings its codes with it.
        codebook: the centroids of a patch encoder's features; None for the others.

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
        tokenizer = chosen.load()
        patches = tokenizer.grid[0] * tokenizer.grid[1]
        image_set = ImageSet(index, open_source(source), decoding)
        units = UnitFolder(folder, made_from.fingerprint)
        encoding = EncodingPass(image_set, units, _schema(patches), _PART, np.arange(len(index)))
        for batch, writer in encoding.run("tokenize images", tokenizer.preprocessing, workspace.settings, run):
            tokens = tokenizer(batch.pixels)
            refuse_non_finite(tokens >= 0, batch, index)
            writer.write_batch(_record_batch(batch, tokens[: len(batch)].cpu().numpy()))
        counts = np.zeros(tokenizer.vocabulary, np.int64)
        write_token_store(
            folder,
            _counted(units, encoding, counts),
            images=len(index),
            patches=patches,
            attributes=_attributes(tokenizer, definition, inputs, index),
        )
        np.save(folder / "counts.npy", counts)
        for name in (_PART, "units"):
            shutil.rmtree(folder / name)
        return Built(_summary(folder, counts), {"encoder": chosen.encoder, **encoding.speed})

    result = workspace.artifact(made_from, build)
    require_allowed(result.artifact, decoding)
    return result


@dataclass(frozen=True)
class _Choice:
    """A tokenizer that is not loaded yet: what defines it, the digests of what it is made from, and what people call
    its network."""

    definition: Mapping[str, object]
    digests: Mapping[str, str]
    encoder: str
    load: Callable[[], Tokenizer]


def _choose(options: TokenizerOptions, codebook: Artifact | None, settings: Settings) -> _Choice:
    if not isinstance(options, ClipOptions | RawPatchOptions):
        whole = tokenizer_for(options, settings)
        definition = {"tokenizer": whole.name, "encoder": network_definition(whole)}
        return _Choice(definition, {"tokenizer": whole.digest}, options.checkpoint, lambda: whole)
    if codebook is None:
        raise PipelineError(
            f"tokenize_images: the features of {type(options).__name__} need a codebook, none was given"
        )
    encoder, name, centroids = encoder_for(options, settings), _name_of(options), codebook.path

    def with_centroids() -> Tokenizer:
        return KClipTokenizer(encoder, torch.from_numpy(read_codebook(centroids).centroids), name=name)

    digests = {"encoder": encoder.digest, "codebook": codebook.digest}
    return _Choice({"encoder": network_definition(encoder)}, digests, encoder.name, with_centroids)


def _name_of(options: ClipOptions | RawPatchOptions) -> str:
    if isinstance(options, RawPatchOptions):
        return "pixels"
    return "kclip" if options.pretrained else "random"  # tokens of random weights should say so


def _schema(patches: int) -> pa.Schema:
    return pa.schema([("row", pa.int64()), ("tokens", pa.list_(pa.uint16(), patches))])


def _record_batch(batch: ImageBatch, tokens: np.ndarray) -> pa.RecordBatch:
    tokens = np.where(batch.valid[:, None], tokens, NO_TOKEN).astype(np.uint16)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(tokens.reshape(-1)), tokens.shape[1])
    return pa.record_batch([pa.array(batch.rows), lists], schema=_schema(tokens.shape[1]))


def _counted(
    units: UnitFolder, encoding: EncodingPass, counts: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows, tokens and status of every unit; adds each token's occurrences to `counts` [K]."""
    for unit, _ in encoding.work():
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
