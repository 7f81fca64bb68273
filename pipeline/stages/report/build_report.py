"""Stage `report`: one HTML and one Markdown page about a build of tokens, pre-trainings on them, evaluations, and other
tokenizers beside them.

The artifacts' digests are its inputs, so the same content is reported once. What depends on the run that made the
content (seconds, images per second) is that run's, as its artifact tells.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from pipeline.data.decoding_options import DecodingOptions
from pipeline.data.image_batches import ImageSet
from pipeline.data.known_checksums import open_unchanged
from pipeline.engine.errors import PipelineError
from pipeline.engine.stage import Made, Source, Stage, recipe_of
from pipeline.engine.tracker import TrackedRun
from pipeline.stages.inputs import Images
from pipeline.stages.report import build_facts, texts
from pipeline.stages.report.build_content import BuildContent
from pipeline.stages.report.build_figures import build_figures
from pipeline.stages.report.codebook_section import report_section
from pipeline.stages.report.departures import Standard
from pipeline.stages.report.evaluations import find_evaluations, our_results
from pipeline.stages.report.page import Page, PageFigure, render_html, render_markdown
from pipeline.stages.report.paper_section import paper_section, section_csv
from pipeline.stages.report.pretraining_section import pretraining_section, split_options
from pipeline.stages.report.pretrainings import PRETRAIN, Pretraining, find_pretrainings
from pipeline.stages.report.tokenizer_builds import (
    TOKEN_STAGES,
    TOKENS,
    TokenizerBuild,
    find_tokenizer_builds,
    tokenizer_adjective,
)
from pipeline.stages.report.tokenizers_section import tokenizers_section
from storage.artifact import Artifact, Built, Recipe
from storage.files import sha256_bytes

HTML, MARKDOWN, CODEBOOK, TABLES = "report.html", "report.md", "codebook.png", "results.csv"
_LISTED_BAD_IMAGES = 20


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

    NAME: ClassVar[str] = "report"
    VERSION: ClassVar[int] = 6

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
        told = self._told(made)
        _check_tokens(told)
        digests = {stage: artifact.digest for stage, artifact in told.content.stages.items()}
        digests |= {f"{other.stage}-{other.fingerprint}": other.digest for other in told.others}
        digests |= {name: artifact.digest for name, artifact in told.evaluations.items()}
        digests |= {pretraining.input_name: pretraining.artifact.digest for pretraining in told.pretrainings}
        standard = sha256_bytes(json.dumps(told.standard, sort_keys=True).encode())
        return recipe_of(self, {"title": self.title, "standard": standard}, **digests)

    def build(self, made: Made, folder: Path, run: TrackedRun) -> Built:
        """Draw it.

        Raises:
            PipelineError: the images are gone.
            StoreInvalid: a token store or the codebook breaks its format.
        """
        told, layout = self._told(made), made.settings.layout
        index, tokens = told.content.index, made[self.tokens]
        unchanged = open_unchanged(self.images.source_in(made), made[self.images.index], len(index), layout, tokens)
        files, page = _draw(told, ImageSet(index, unchanged, self.decoding), layout.root)
        files[HTML] = render_html(page).encode()
        files[MARKDOWN] = render_markdown(page).encode()
        for name, data in files.items():
            (folder / name).write_bytes(data)
            if name != MARKDOWN:
                run.file(folder / name)
        return Built({"tokens_shown": len(page.codebook.panels), "patches_shown": page.codebook.patches_shown}, {})

    def _told(self, made: Made) -> "_Told":
        build = [made[stage] for stage in self.made_from if stage in made]
        build += [made[source] for source in (self.images.index, self.tokens) if made[source] not in build]
        stages = {artifact.stage: artifact for artifact in build}
        compared = tuple(made[stage] for stage in self.compared if stage in made)
        return _Told(BuildContent(stages), tuple(build), compared, self.title, self.standard)


@dataclass(frozen=True)
class _Told:
    """What the page tells of, sorted out."""

    content: BuildContent
    artifacts: tuple[Artifact, ...]
    compared: tuple[Artifact, ...]
    title: str
    standard: Standard

    @cached_property
    def others(self) -> tuple[Artifact, ...]:
        """What further tokens were made from, and these."""
        there = {artifact.fingerprint for artifact in self.artifacts}
        found = {one.fingerprint: one for one in self.compared if one.stage in TOKEN_STAGES}
        return tuple(artifact for fingerprint, artifact in found.items() if fingerprint not in there)

    @cached_property
    def builds(self) -> tuple[TokenizerBuild, ...]:
        """The tokenizers, that of the build first."""
        found = find_tokenizer_builds([*self.artifacts, *self.others])
        return tuple(sorted(found, key=lambda one: one.tokens.digest != self.content.stages[TOKENS].digest))

    @cached_property
    def pretrainings(self) -> tuple[Pretraining, ...]:
        return find_pretrainings(self.compared, {build.tokens.digest: build.name for build in self.builds})

    @cached_property
    def evaluations(self) -> Mapping[str, Artifact]:
        return find_evaluations(self.compared)

    @property
    def all_stages(self) -> dict[str, Artifact]:
        """By stage, the build's first."""
        return {**{other.stage: other for other in self.others}, **self.content.stages}


def _check_tokens(told: _Told) -> None:
    """Raises PipelineError for a pre-training or evaluation of tokens that were not given."""
    used = [(one.artifact, "learned", one.tokens) for one in told.pretrainings]
    judged = [(made, made.recipe["options"].get("tokens")) for made in told.evaluations.values()]
    used += [(made, "judged", tokens) for made, tokens in judged if tokens]
    there = {build.tokens.digest: build.tokens.path for build in told.builds}
    for made, verb, tokens in used:
        if tokens not in there:
            known = ", ".join(f"{digest[:12]} ({path})" for digest, path in there.items())
            raise PipelineError(
                f"report: {made.path} {verb} the tokens {tokens[:12]}, given are {known}; report it with the build "
                "that it belongs to"
            )


def _draw(told: _Told, images: ImageSet, data_root: Path) -> tuple[dict[str, bytes], Page]:
    """The files beside the page, and the page that shows them."""
    content, builds, pretrainings = told.content, told.builds, told.pretrainings
    trained = [pretraining.artifact for pretraining in pretrainings]
    artifacts = [*content.stages.values(), *told.others, *trained, *told.evaluations.values()]
    results = our_results(
        told.evaluations.values(), pretrainings, content.stages, builds, preset=told.title, standard=told.standard
    )
    paper = paper_section(results) if results else None
    codebook = report_section(content, images)
    section = pretraining_section(pretrainings, builds) if pretrainings else None
    drawn = build_figures(content, builds)
    files = {CODEBOOK: codebook.picture, **{figure.file: figure.light for figure in drawn}}
    if section:
        files[section.figure.file] = section.figure.light
    if paper:
        files |= {TABLES: section_csv(paper).encode(), **_light(paper.figure)}
    page = Page(
        title=texts.title(content.stages, builds, pretrainings),
        introduction=texts.introduction(builds, pretrainings),
        demo_notes=texts.demo_notes(told.all_stages, builds[0].kind, pretrainings),
        key_figures=build_facts.key_figures(content.stages, builds[0]),
        pretraining=section,
        paper=paper,
        tokenizers=tokenizers_section(content, builds, results, told.evaluations) if len(builds) > 1 else None,
        stages=build_facts.stage_rows(artifacts, builds),
        total_cost=build_facts.total_cost(artifacts),
        figures=drawn,
        codebook=codebook,
        shown_tokens=f"{tokenizer_adjective(builds[0].kind)} tokens" if len(builds) > 1 else "tokens",
        bad_kinds=content.bad_kinds,
        bad_images=content.bad_images[:_LISTED_BAD_IMAGES],
        options=_options(told),
        machine=build_facts.machine_table(artifacts, data_root),
    )
    return files, page


def _light(figure: PageFigure | None) -> dict[str, bytes]:
    return {figure.file: figure.light} if figure else {}


def _options(told: _Told) -> dict[str, dict[str, str]]:
    """Per stage, those of further tokenizers too; of several pre-trainings those that they share."""
    tables = {artifact.stage: build_facts.option_table(artifact) for artifact in told.content.stages.values()}
    for build in told.builds[1:]:
        for stage, artifact in build.stages.items():
            if artifact in told.others:
                tables[f"{stage}, {build.name}"] = build_facts.option_table(artifact)
    return tables | ({PRETRAIN: split_options(told.pretrainings)[0]} if told.pretrainings else {})
