"""The figures of a page about how the vocabulary came to be and how evenly it is used, each with how to read it."""

from collections.abc import Sequence

from pipeline.stages.records import VQKDRecord
from pipeline.stages.report import figures
from pipeline.stages.report.build_content import BuildContent
from pipeline.stages.report.figures import light_and_dark
from pipeline.stages.report.page_parts import PageFigure
from pipeline.stages.report.tokenizer_builds import VQKD, TokenizerBuild
from pipeline.stages.report.vqkd_figure import vqkd_figure
from pipeline.training.history import read_history
from storage.artifact import Artifact
from storage.codebook_file import Codebook


def build_figures(content: BuildContent, builds: Sequence[TokenizerBuild]) -> list[PageFigure]:
    """Draw the figures of the build, and one of the training of every VQ-KD among the tokenizers."""
    drawn = [_iterations(content.codebook)] if content.codebook else []
    fitted = {build.stages[VQKD].fingerprint: build.stages[VQKD] for build in builds if VQKD in build.stages}
    drawn += [_vqkd(artifact, number) for number, artifact in enumerate(fitted.values(), start=1)]
    drawn.append(_sizes(content))
    return [*drawn, _bad_images(content)] if content.bad_kinds else drawn


def _iterations(codebook: Codebook) -> PageFigure:
    return PageFigure(
        "iterations.png",
        "How k-means went",
        "Left: the sum of squared distances to the nearest centroid should fall steeply, then flatten; if it still "
        "falls at the end, more iterations would help. Right: the higher both lines, the more evenly the clustered "
        "sample uses the vocabulary.",
        *light_and_dark(lambda palette: figures.iterations_figure(codebook.history, codebook.vocabulary, palette)),
    )


def _vqkd(fitted: Artifact, number: int) -> PageFigure:
    history, record = read_history(fitted.path), VQKDRecord.of(fitted)
    return PageFigure(
        "vqkd.png" if number == 1 else f"vqkd-{number}.png",
        "How VQ-KD went",
        "Left: the cosine between the teacher's features and those that the decoder makes of the codes alone should "
        "rise, then flatten; if it still rises at the end, more steps would help. Right: lines are what the training "
        "counts as it goes, a moving average in which a code that was given a new place counts as used; diamonds are "
        "the tokens that whole training images get when it is over. The higher they are the more evenly the "
        "vocabulary is used; diamonds far below their lines are a training that was too short for its codes, or codes "
        "that no image needs.",
        *light_and_dark(lambda palette: vqkd_figure(history, record.vocabulary, record, palette)),
    )


def _sizes(content: BuildContent) -> PageFigure:
    clustered = content.codebook.sizes if content.codebook else None
    return PageFigure(
        "sizes.png",
        "How often tokens occur",
        "Each bar counts the tokens that occur that often, in bins that double (8+ is 8 to 15, 2k+ is 2,048 to "
        "4,095; 0 is unused): one narrow hill is an even vocabulary, a long left tail is tokens spent on outliers.",
        *light_and_dark(lambda palette: figures.sizes_figure(clustered, content.counts, palette)),
    )


def _bad_images(content: BuildContent) -> PageFigure:
    return PageFigure(
        "bad_images.png",
        "Bad images",
        "Images that could not be decoded, by what is wrong with them; they keep their row and have no tokens.",
        *light_and_dark(lambda palette: figures.bad_images_figure(content.bad_kinds, palette)),
    )
