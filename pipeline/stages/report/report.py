"""Stage `report`: one HTML and one Markdown page about a build of tokens, pre-trainings on them, evaluations, and other
tokenizers beside them.

The artifacts' digests are its inputs, so the same content is reported once. What depends on the run that made the
content (seconds, images per second) is that run's, as its artifact tells.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from pipeline.data.decoding_options import DecodingOptions
from pipeline.data.inputs import Images
from pipeline.data.known_checksums import open_unchanged
from pipeline.engine.stage import Made, Source, Stage, recipe_of
from pipeline.engine.tracker import TrackedRun
from pipeline.stages.records import ReportRecord
from pipeline.stages.report.build_content import BuildContent
from pipeline.stages.report.departures import Standard
from pipeline.stages.report.report_subject import ReportSubject, require_tokens
from storage.artifact import Built, Recipe
from storage.files import sha256_bytes

HTML, MARKDOWN = "report.html", "report.md"


@dataclass(frozen=True)
class Report(Stage):
    """Write report.html (whole in one file), report.md and the PNG files that it shows.

    Attributes:
        images: for the pictures of the codebook.
        tokens: those of the build that is reported.
        made_from: the stages that these tokens were made by, as far as this run has them.
        compared: any number of pre-trainings, evaluations and further token stores of the same images, with what these
            were made from; other stages are passed over, and so is what could not be made.
        title: of the comparison.
        standard: what the paper's presets record; what differs from it, or is compared with none, does not stand
            beside the paper's numbers.
    """

    NAME: ClassVar[str] = ReportRecord.STAGE
    VERSION: ClassVar[int] = 6
    USES_GPU: ClassVar[bool] = False

    images: Images
    tokens: Source
    decoding: DecodingOptions
    made_from: tuple[Source, ...] = ()
    compared: tuple[Source, ...] = ()
    title: str = ""
    standard: Standard = field(default_factory=dict, hash=False)

    @property
    def may_take(self) -> tuple[Source, ...]:
        return (*self.made_from, *self.compared)

    def recipe(self, made: Made) -> Recipe:
        """Sort out what is told of.

        Raises:
            PipelineError: a pre-training learned or an evaluation judged tokens that are not among the token stores.
        """
        inputs = self._sort_inputs(made)
        require_tokens(inputs)
        digests = {stage: artifact.digest for stage, artifact in inputs.content.stages.items()}
        digests |= {f"{other.stage}-{other.fingerprint}": other.digest for other in inputs.others}
        digests |= {name: artifact.digest for name, artifact in inputs.evaluations.items()}
        digests |= {pretraining.input_name: pretraining.artifact.digest for pretraining in inputs.pretrainings}
        standard = sha256_bytes(json.dumps(inputs.standard, sort_keys=True).encode())
        return recipe_of(self, {"title": self.title, "standard": standard}, **digests)

    def build(self, made: Made, folder: Path, run: TrackedRun) -> Built:
        """Draw the page, and write it with the files beside it.

        Raises:
            PipelineError: the images are gone.
            StoreInvalid: a token store or the codebook breaks its format.
        """
        from pipeline.data.image_batches import ImageSet
        from pipeline.stages.report.draw_report import draw_report
        from pipeline.stages.report.page import render_html, render_markdown

        inputs, layout = self._sort_inputs(made), made.settings.layout
        index, tokens = inputs.content.index, made[self.tokens]
        unchanged = open_unchanged(self.images.source_in(made), made[self.images.index], len(index), layout, tokens)
        files, page = draw_report(inputs, ImageSet(index, unchanged, self.decoding), layout.root)
        files[HTML] = render_html(page).encode()
        files[MARKDOWN] = render_markdown(page).encode()
        for name, data in files.items():
            (folder / name).write_bytes(data)
            if name != MARKDOWN:
                run.file(folder / name)
        shown = ReportRecord(tokens_shown=len(page.codebook.panels), patches_shown=page.codebook.patches_shown)
        return shown.built({})

    def _sort_inputs(self, made: Made) -> ReportSubject:
        build = [made[stage] for stage in self.made_from if stage in made]
        build += [made[source] for source in (self.images.index, self.tokens) if made[source] not in build]
        stages = {artifact.stage: artifact for artifact in build}
        compared = tuple(made[stage] for stage in self.compared if stage in made)
        return ReportSubject(BuildContent(stages), tuple(build), compared, self.title, self.standard)
