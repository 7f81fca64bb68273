"""Stage `report`: one HTML and one Markdown page about a k-CLIP build, pre-trainings on its tokens, evaluations.

The artifacts' digests are its inputs, so the same content is reported once. What depends on the run that made the
content (seconds, images per second) is that run's, as its artifact tells.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.data.image_batches import DecodingOptions, ImageSet
from pipeline.data.sources import open_source
from pipeline.data.sources.base import ImageSourceOptions
from pipeline.errors import PipelineError
from pipeline.fingerprint import recipe
from pipeline.report import build_facts, figures, texts
from pipeline.report.build_content import BuildContent
from pipeline.report.codebook_section import report_section
from pipeline.report.evaluations import find_evaluations, our_results
from pipeline.report.figures import light_and_dark
from pipeline.report.our_results import OurResult
from pipeline.report.page import Page, PageFigure, render_html, render_markdown
from pipeline.report.paper_section import paper_section, section_csv
from pipeline.report.pretraining_section import pretraining_section, split_options
from pipeline.report.pretrainings import PRETRAIN, Pretraining, find_pretrainings
from pipeline.tracker import TrackedRun
from pipeline.workspace import StageResult, Workspace
from storage.artifact import Artifact, Built

STAGE = "report"
VERSION = 5
HTML, MARKDOWN, CODEBOOK, TABLES = "report.html", "report.md", "codebook.png", "results.csv"
_LISTED_BAD_IMAGES = 20
_TOKENS = "tokenize_images"
_NEEDED = ("index_images", "extract_features", "fit_codebook", _TOKENS)


def report(
    artifacts: tuple[Artifact, ...],
    *,
    compared: tuple[Artifact, ...] = (),
    title: str = "",
    source: ImageSourceOptions,
    decoding: DecodingOptions,
    workspace: Workspace,
) -> StageResult:
    """Write report.html (whole in one file), report.md and the PNG files that it shows.

    Args:
        artifacts: those of one build, one per stage (the stages of the demo only if it is one).
        compared: any number of pre-trainings, evaluations and further token stores; other stages are passed over.
        title: of the comparison.
        source: where the images lie, for the pictures of the codebook.

    Raises:
        PipelineError: a stage's artifact is missing, a pre-training learned tokens that are not among the token
            stores, or the images are gone.
        StoreInvalid: the token store or the codebook breaks its format.
    """
    stages = {artifact.stage: artifact for artifact in artifacts}
    if missing := [stage for stage in _NEEDED if stage not in stages]:
        raise PipelineError(f"report: no artifact of {', '.join(missing)} was given; a build's report needs all stages")
    content, pretrainings, evaluations = BuildContent(stages), find_pretrainings(compared), find_evaluations(compared)
    tokens = {made.digest: made for made in (*artifacts, *compared) if made.stage == _TOKENS}
    _check_tokens(pretrainings, tokens)

    def build(folder: Path, run: TrackedRun) -> Built:
        images = ImageSet(content.index, open_source(source), decoding)
        results = our_results(evaluations.values(), pretrainings, stages, tokens, preset=title)
        files, page = _draw(content, pretrainings, evaluations, results, images, workspace.settings.layout.root)
        files[HTML] = render_html(page).encode()
        files[MARKDOWN] = render_markdown(page).encode()
        for name, data in files.items():
            (folder / name).write_bytes(data)
            if name != MARKDOWN:
                run.file(folder / name)
        return Built({"tokens_shown": len(page.codebook.panels), "patches_shown": page.codebook.patches_shown}, {})

    digests = {stage: artifact.digest for stage, artifact in stages.items()}
    digests |= {f"{_TOKENS}-{other.fingerprint}": other.digest for other in tokens.values() if other not in artifacts}
    digests |= {name: artifact.digest for name, artifact in evaluations.items()}
    digests |= {pretraining.input_name: pretraining.artifact.digest for pretraining in pretrainings}
    return workspace.artifact(recipe(STAGE, VERSION, {"title": title}, **digests), build)


def _check_tokens(pretrainings: Sequence[Pretraining], tokens: Mapping[str, Artifact]) -> None:
    for pretraining in pretrainings:
        learned = pretraining.artifact.recipe["inputs"]["tokens"]
        if learned not in tokens:
            there = ", ".join(f"{digest[:12]} ({artifact.path})" for digest, artifact in tokens.items())
            raise PipelineError(
                f"report: {pretraining.artifact.path} learned the tokens {learned[:12]}, the build has {there}; report "
                "it with the build that it belongs to"
            )


def _draw(
    content: BuildContent,
    pretrainings: Sequence[Pretraining],
    evaluations: Mapping[str, Artifact],
    results: Sequence[OurResult],
    images: ImageSet,
    data_root: Path,
) -> tuple[dict[str, bytes], Page]:
    """The files beside the page, and the page that shows them."""
    trained = [pretraining.artifact for pretraining in pretrainings]
    artifacts = [*content.stages.values(), *trained, *evaluations.values()]
    paper = paper_section(results) if results else None
    codebook = report_section(content, images)
    section = pretraining_section(pretrainings, content.stages["tokenize_images"]) if pretrainings else None
    drawn = _figures(content)
    files = {CODEBOOK: codebook.picture, **{figure.file: figure.light for figure in drawn}}
    if section:
        files[section.figure.file] = section.figure.light
    if paper:
        files[TABLES] = section_csv(paper).encode()
        if paper.figure:
            files[paper.figure.file] = paper.figure.light
    page = Page(
        title=texts.title(content.stages, pretrainings),
        introduction=texts.introduction(content, pretrainings),
        demo_notes=texts.demo_notes(content.stages, pretrainings),
        key_figures=build_facts.key_figures(content.stages, content.grid),
        pretraining=section,
        paper=paper,
        stages=build_facts.stage_rows(artifacts),
        total_cost=build_facts.total_cost(artifacts),
        figures=drawn,
        codebook=codebook,
        bad_kinds=content.bad_kinds,
        bad_images=content.bad_images[:_LISTED_BAD_IMAGES],
        options=_options(content, pretrainings),
        machine=build_facts.machine_table(artifacts, data_root),
    )
    return files, page


def _options(content: BuildContent, pretrainings: Sequence[Pretraining]) -> dict[str, dict[str, str]]:
    """Per stage; of several pre-trainings those that they share."""
    tables = build_facts.option_tables(list(content.stages.values()))
    return tables | ({PRETRAIN: split_options(pretrainings)[0]} if pretrainings else {})


def _figures(content: BuildContent) -> list[PageFigure]:
    history, vocabulary = content.codebook.history, content.codebook.vocabulary
    drawn = [
        PageFigure(
            "iterations.png",
            "How k-means went",
            "Left: the sum of squared distances to the nearest centroid should fall steeply, then flatten; if it still "
            "falls at the end, more iterations would help. Right: the higher both lines, the more evenly the clustered "
            "sample uses the vocabulary.",
            *light_and_dark(lambda palette: figures.iterations_figure(history, vocabulary, palette)),
        ),
        PageFigure(
            "sizes.png",
            "How often tokens occur",
            "Each bar counts the tokens that occur that often, in bins that double (8+ is 8 to 15, 2k+ is 2,048 to "
            "4,095; 0 is unused): one narrow hill is an even vocabulary, a long left tail is tokens spent on outliers.",
            *light_and_dark(lambda palette: figures.sizes_figure(content.codebook.sizes, content.counts, palette)),
        ),
    ]
    if content.bad_kinds:
        drawn.append(
            PageFigure(
                "bad_images.png",
                "Bad images",
                "Images that could not be decoded, by what is wrong with them; they keep their row and have no tokens.",
                *light_and_dark(lambda palette: figures.bad_images_figure(content.bad_kinds, palette)),
            )
        )
    return drawn
