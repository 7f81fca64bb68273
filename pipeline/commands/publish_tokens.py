"""`mapet publish-tokens`: a token store as a directory that can be uploaded as a data set; and back again.

Half a gigabyte for ImageNet, where the features would be 2.6 TB and the images nobody's to give away.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from jinja2 import Environment, PackageLoader

from models.tokenizers.registry import tokenizer_words
from models.weights.state_files import write_safetensors
from pipeline.chains.graph import Graph, Node, run_graph
from pipeline.chains.tokens import indexed
from pipeline.commands.configured import configure
from pipeline.commands.destination import new_directory, require_new
from pipeline.commands.found_inputs import find_index, find_input
from pipeline.commands.words import Words
from pipeline.engine.errors import PipelineError
from pipeline.engine.workspace import Workspace
from pipeline.stages.fit_codebook import FitCodebook
from pipeline.stages.import_tokens import ImportTokens, Joined
from pipeline.stages.records import TokensRecord
from pipeline.stages.tokenize_images import GivenTokens
from storage.artifact import Artifact
from storage.codebook_file import read_codebook
from storage.image_index import ImageIndex, ImageStatus
from storage.image_records import read_image_records
from storage.published_tokens import published_schema, seal, write_rows
from storage.token_store import TokenStore

CARD, CENTROIDS = "README.md", "codebook.safetensors"
_OF_HERE = ("format", "image_index")  # attributes of a store that mean nothing elsewhere


def publish_tokens(artifact: Path, to: Path, *, data_root: Path) -> str:
    """Write the directory `to`, whole or not at all; returns what it holds, in words.

    Args:
        artifact: folder of a token store, whatever its tokenizer.
        data_root: where its image index is looked for, after the data root that the artifact lies in.

    Raises:
        PipelineError: `to` exists or cannot be made, or the image index is not here.
        ArtifactMissing, ArtifactDamaged: there is no token store at `artifact`, or it is not what was published.
    """
    to = to.expanduser().absolute()
    require_new(to, "directory")
    made = GivenTokens(artifact).read()
    store = TokenStore(made.path)
    index = ImageIndex.read(find_index(made, str(store.attributes["image_index"]), data_root).path)
    table = _rows(made, store, index)
    about = {name: value for name, value in store.attributes.items() if name not in _OF_HERE}
    about |= {"published_encoder": TokensRecord.of(made).encoder, "token_store": made.digest}
    with new_directory(to) as folder:
        write_rows(folder, table)
        centroids = _write_centroids(folder, made, data_root)
        (folder / CARD).write_text(_card(to.name, about, table, centroids), encoding="utf-8")
        seal(folder, about)
    without = f" and {CENTROIDS}" if centroids else ""
    return f"tokens of {len(table):,} images, {store.vocabulary:,} of them possible{without}"


def import_tokens(folder: Path, options: tuple[str, ...], *, by: Joined) -> Artifact:
    """Join published tokens to the images that the `options` name; returns the token store.

    Raises:
        StoreInvalid: `folder` is not what was published.
        PipelineError: not one image is among those that were published, or the options are wrong.
    """
    config, settings = configure(Words("kclip-build", "folder", options))
    first, images = indexed(config)
    graph = Graph.of((*first, Node(ImportTokens(folder.expanduser().absolute(), images, by), config)))
    with Workspace(settings).tracked(f"import-tokens {folder.name}", config.images) as workspace:
        return run_graph(graph, workspace, check=lambda _: None)[ImportTokens.NAME].artifact


def _rows(made: Artifact, store: TokenStore, index: ImageIndex) -> pa.Table:
    """Return the valid images with their tokens, in the order of the index."""
    records = read_image_records(made.path)
    if len(records) != len(index):
        raise PipelineError(f"{made.path}: these tokens were imported by name themselves; publish those they came from")
    tokens = store.load()
    columns: dict[str, Any] = {name: index.table[name].combine_chunks() for name in ("name", "split", "label")}
    columns |= {name: records[name].combine_chunks() for name in ("bytes", "crc32c", "width", "height")}
    columns["tokens"] = pa.FixedSizeListArray.from_arrays(pa.array(tokens.reshape(-1)), tokens.shape[1])
    table = pa.table(columns, schema=published_schema(tokens.shape[1]))
    return table.filter(pa.array(store.status == ImageStatus.VALID))


def _write_centroids(folder: Path, made: Artifact, data_root: Path) -> bool:
    """Write the centroids if there are any, and their artifact is here; return whether it is so."""
    digest = made.recipe.inputs.get("codebook", "")
    fitted = find_input(made, FitCodebook.NAME, digest, data_root) if digest else None
    if fitted is None:
        return False
    write_safetensors(folder / CENTROIDS, {"centroids": torch.from_numpy(read_codebook(fitted.path).centroids)})
    return True


def _card(name: str, about: Mapping[str, Any], table: pa.Table, centroids: bool) -> str:
    environment = Environment(
        loader=PackageLoader("pipeline.commands", "templates"), autoescape=False, trim_blocks=True, lstrip_blocks=True
    )  # nosec B701 (Markdown, and nothing of it is a stranger's)
    splits = sorted(set(table["split"].to_pylist()))
    words = tokenizer_words(str(about["tokenizer"]))
    rows, columns = about["grid"]
    method = words.method.format(grid=f"{rows} x {columns}", vocabulary=int(about["vocabulary"]))
    return environment.get_template("token_card.md").render(
        name=name, about=about, words=words, method=method, images=len(table), splits=splits, centroids=centroids
    )
