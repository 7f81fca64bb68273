"""The page of a report and the files beside it, from what it tells of."""

from pathlib import Path

from pipeline.data.image_batches import ImageSet
from pipeline.stages.report import build_facts, texts
from pipeline.stages.report.build_figures import build_figures
from pipeline.stages.report.codebook_section import report_section
from pipeline.stages.report.evaluations import our_results
from pipeline.stages.report.page import Page
from pipeline.stages.report.page_parts import PageFigure
from pipeline.stages.report.paper_section import paper_section, section_csv
from pipeline.stages.report.pretraining_section import pretraining_section, split_options
from pipeline.stages.report.pretrainings import PRETRAIN
from pipeline.stages.report.report_subject import ReportSubject
from pipeline.stages.report.tokenizers_section import tokenizers_section

CODEBOOK, TABLES = "codebook.png", "results.csv"
_LISTED_BAD_IMAGES = 20


def draw_report(inputs: ReportSubject, images: ImageSet, data_root: Path) -> tuple[dict[str, bytes], Page]:
    """Return the files beside the page, and the page that shows them."""
    content, builds, pretrainings = inputs.content, inputs.builds, inputs.pretrainings
    trained = [pretraining.artifact for pretraining in pretrainings]
    artifacts = [*content.stages.values(), *inputs.others, *trained, *inputs.evaluations.values()]
    results = our_results(
        inputs.evaluations.values(), pretrainings, content.stages, builds, preset=inputs.title, standard=inputs.standard
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
        demo_notes=texts.demo_notes(inputs.all_stages, builds[0].kind, pretrainings),
        key_figures=build_facts.key_figures(content.stages, builds[0]),
        pretraining=section,
        paper=paper,
        tokenizers=tokenizers_section(content, builds, results, inputs.evaluations) if len(builds) > 1 else None,
        stages=build_facts.stage_rows(artifacts, builds),
        total_cost=build_facts.total_cost(artifacts),
        figures=drawn,
        codebook=codebook,
        shown_tokens=f"{builds[0].words.before_a_noun} tokens" if len(builds) > 1 else "tokens",
        bad_kinds=content.bad_kinds,
        bad_images=content.bad_images[:_LISTED_BAD_IMAGES],
        options=_options(inputs),
        machine=build_facts.machine_table(artifacts, data_root),
    )
    return files, page


def _light(figure: PageFigure | None) -> dict[str, bytes]:
    return {figure.file: figure.light} if figure else {}


def _options(inputs: ReportSubject) -> dict[str, dict[str, str]]:
    """Return the options of each stage, those of further tokenizers too; of several pre-trainings those that they
    share."""
    tables = {artifact.stage: build_facts.option_table(artifact) for artifact in inputs.content.stages.values()}
    for build in inputs.builds[1:]:
        for stage, artifact in build.stages.items():
            if artifact in inputs.others:
                tables[f"{stage}, {build.name}"] = build_facts.option_table(artifact)
    return tables | ({PRETRAIN: split_options(inputs.pretrainings)[0]} if inputs.pretrainings else {})
