"""`mapet codebook`: a directory of pictures that show what tokens of any token store look like (the paper's Figs. 3-5).

DIR/index.html        the chosen tokens, whole in one file
DIR/token_0017.png    one of them
DIR/codebook.csv      patches, images, majority class and purity of all tokens
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models.tokenizers.registry import tokenizer_words
from pipeline.commands.destination import new_directory, require_new
from pipeline.commands.found_inputs import find_index
from pipeline.data.decoding_options import DecodingOptions
from pipeline.data.image_batches import ImageSet
from pipeline.data.known_checksums import open_unchanged
from pipeline.data.source_options import ImageSourceOptions
from pipeline.engine.errors import PipelineError
from pipeline.stages.demo.make_demo_images import MakeDemoImages
from pipeline.stages.index_images import IndexImages
from pipeline.stages.records import IndexRecord, TokensRecord
from pipeline.stages.report.build_content import BuildContent
from pipeline.stages.report.codebook_panels import panels_png
from pipeline.stages.report.codebook_section import THE_PUREST, CodebookSection, codebook_section
from pipeline.stages.report.page_templates import page_environment
from pipeline.stages.report.token_statistics import most_used_tokens, purest_tokens, statistics_csv
from pipeline.stages.tokenize_images import GivenTokens
from storage.artifact import Artifact
from storage.layout import Layout
from storage.token_store import TokenStore

HTML, CSV, TOKEN = "index.html", "codebook.csv", "token_{:04d}.png"
TOKENS = PICTURES = 8


def parse_tokens(text: str) -> tuple[int, ...]:
    """Parse `3,17,40` into (3, 17, 40), each once. Raises PipelineError for anything else."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() for word in words):
        raise PipelineError(f"--tokens {text!r}: expected ids with commas between them, such as 3,17,40")
    return tuple(dict.fromkeys(map(int, words)))


def write_codebook_pages(
    artifact: Path,
    to: Path,
    *,
    data_root: Path,
    tokens: Sequence[int] = (),
    count: int = TOKENS,
    pictures: int = PICTURES,
    source: Path | None = None,
    split: str = "",
) -> CodebookSection:
    """Write the directory `to`, whole or not at all; returns what its page shows.

    Args:
        artifact: folder of a token store, whatever its tokenizer.
        data_root: where its image index is looked for, after the data root that the artifact lies in.
        tokens: ids to show; without any, the `count` purest tokens, or the most used where images have no labels.
        pictures: at most so many matches per token, and as many mismatches.
        source: where the images lie, if no longer where they were when they were indexed.
        split: whose images are counted and shown; "": the one with the most labelled images.

    Raises:
        PipelineError: `to` exists or cannot be made, a token or split does not exist, or images are gone, changed or
            unreadable.
        ArtifactMissing, ArtifactDamaged: there is no token store at `artifact`, or it is not what was published.
    """
    to = to.expanduser().absolute()
    _check_request(to, count, pictures)
    made = GivenTokens(artifact).read()
    store = TokenStore(made.path)
    if wrong := [token for token in tokens if not 0 <= token < store.vocabulary]:
        raise PipelineError(f"token {wrong[0]} does not exist: the vocabulary has {store.vocabulary:,}, ids from 0")
    indexed = find_index(made, str(store.attributes["image_index"]), data_root)
    content = BuildContent({IndexImages.NAME: indexed, TokensRecord.STAGE: made}, split=split)
    options = ImageSourceOptions(kind=content.index.source_kind, path=str(_find_images(indexed, source)))
    decoding = DecodingOptions.model_validate(store.attributes["decoding"])
    chosen, which = _choose(content, tokens, count)
    unchanged = open_unchanged(options, indexed, len(content.index), Layout(data_root), made)
    section = codebook_section(
        content,
        ImageSet(content.index, unchanged, decoding),
        chosen,
        which=which,
        pictures=pictures,
        strict=True,
    )
    files = {TOKEN.format(panel.token): panels_png([panel]) for panel in section.panels}
    files[CSV] = statistics_csv(content.statistics, content.index.classes).encode()
    files[HTML] = _page(section, made, store.attributes, options.path).encode()
    with new_directory(to) as folder:
        for name, data in files.items():
            (folder / name).write_bytes(data)
    return section


def _check_request(to: Path, count: int, pictures: int) -> None:
    for option, value in (("--purest", count), ("--images", pictures)):
        if value < 1:
            raise PipelineError(f"{option} {value}: expected 1 or more")
    require_new(to, "directory")


def _choose(content: BuildContent, tokens: Sequence[int], count: int) -> tuple[Sequence[int], str]:
    """Return the ids to show, and what they are in words."""
    if tokens:
        return tokens, "the {} that were asked for"
    if content.counted.labelled:
        return purest_tokens(content.statistics, count), THE_PUREST
    return most_used_tokens(content.statistics, count), "the {} with the most patches"


def _find_images(indexed: Artifact, given: Path | None) -> Path:
    """Return the directory of the images: the given one, or the one that the index was made from."""
    if given:
        if not given.expanduser().is_dir():
            raise PipelineError(f"--source {given} is no directory; give the root of the images that were tokenized")
        return given.expanduser().absolute()
    noted = IndexRecord.of(indexed).source
    known = [Path(noted).expanduser()] if noted else []
    if known and known[0].parent.name == MakeDemoImages.NAME:  # drawn by us: they are copied and moved with the index
        known.insert(0, indexed.path.parent.parent / MakeDemoImages.NAME / known[0].name)
    if found := next((folder for folder in known if folder.is_dir()), None):
        return found.absolute()
    raise PipelineError(
        f"the images are not at {noted or 'any place that the index names'} (image index {indexed.path}); say where "
        "they are with --source PATH"
    )


def _page(section: CodebookSection, made: Artifact, attributes: Mapping[str, Any], images: str) -> str:
    rows, columns = attributes["grid"]
    facts = {
        "token store": str(made.path.absolute()),
        "tokenizer": tokenizer_words(attributes["tokenizer"]).title,
        "vocabulary": f"{attributes['vocabulary']:,} tokens",
        "patches per image": f"{rows} × {columns}",  # noqa: RUF001
        "images": images,
    }
    title = f"What {tokenizer_words(attributes['tokenizer']).before_a_noun} tokens look like"
    return page_environment().get_template("codebook_pages.html").render(title=title, section=section, facts=facts)
