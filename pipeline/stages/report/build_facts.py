"""What the artifacts of a build say about it, in numbers and words for people. Reads records only, no content."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from models.tokenizers.registry import tokenizer_words
from pipeline.engine.disk_space import readable_bytes
from pipeline.engine.stage_record import BuildNotes
from pipeline.engine.words import counted
from pipeline.engine.workspace import flatten
from pipeline.stages.recipe_views import DemoImagesRecipe, FeaturesRecipe, PretrainRecipe
from pipeline.stages.records import (
    CodebookRecord,
    DemoClipRecord,
    DemoImagesRecord,
    EvaluateRecord,
    FeaturesRecord,
    IndexRecord,
    PretrainRecord,
    TokensRecord,
    VQKDRecord,
)
from pipeline.stages.report.page_parts import ABSENT, KeyFigure, StageRow
from pipeline.stages.report.pretrainings import objective_name
from pipeline.stages.report.tokenizer_builds import DEMO_CLIP, FEATURES, TOKENS, VQKD, TokenizerBuild
from storage.artifact import Artifact

DIGITS = 1_797  # in scikit-learn's data set, unless `demo_images.limit` takes fewer
_PAPERS_VOCABULARY = 8_192


def key_figures(stages: Mapping[str, Artifact], tokenizer: TokenizerBuild) -> list[KeyFigure]:
    """Return the numbers at the top of the page."""
    record, (rows, columns) = tokenizer.record, tokenizer.grid
    vocabulary, patches = record.vocabulary, rows * columns
    classes = IndexRecord.of(stages[IndexRecord.STAGE]).classes
    tokens = counted(record.good_images * patches, "token")
    figures = [
        KeyFigure(
            "Images",
            f"{record.images:,}",
            f"in {counted(classes, 'class', 'classes')}" if classes else "without labels",
        ),
        KeyFigure("Bad images", f"{record.bad_images:,}", "marked invalid, without tokens"),
        KeyFigure("Patches per image", f"{patches:,}", f"{rows} × {columns}, {tokens} in all"),  # noqa: RUF001
        KeyFigure("Vocabulary", f"{vocabulary:,}", f"{tokenizer.ids}, the possible tokens"),
        KeyFigure("Used tokens", f"{record.used:,}", f"{share(record.used_share)} of the vocabulary"),
        KeyFigure(
            "Perplexity", f"{record.perplexity:,.1f}", f"{share(record.perplexity / vocabulary)} of the vocabulary"
        ),
        KeyFigure("Most frequent token", share(record.largest_share), "of all tokens"),
    ]
    if features := stages.get(FEATURES):
        figures.append(_sampled(features))
    if fitted := stages.get(VQKD):
        figures.append(_fitted(VQKDRecord.of(fitted)))
    return figures


def _sampled(features: Artifact) -> KeyFigure:
    sample, recipe = FeaturesRecord.of(features), FeaturesRecipe.of(features)
    return KeyFigure(
        "Sampled vectors",
        f"{sample.sampled_vectors:,}",
        f"of {sample.planned_vectors:,} planned, {share(recipe.sample_fraction)} of the patches of "
        f"{', '.join(recipe.splits)}",
    )


def _fitted(record: VQKDRecord) -> KeyFigure:
    where = "training" if record.val_cosine is None else "validation"
    after = f"in {where}, after {counted(record.steps, 'step')}"
    return KeyFigure("Cosine to the teacher", shown(record.best_cosine, lambda cosine: f"{cosine:.3f}"), after)


def stage_rows(artifacts: Sequence[Artifact], tokenizers: Sequence[TokenizerBuild] = ()) -> list[StageRow]:
    """Return what each stage made and what it took; of several tokenizers, for which of them."""
    owners = {artifact.fingerprint: one.name for one in tokenizers for artifact in one.stages.values()}
    owned = owners if len(tokenizers) > 1 else {}
    return [_stage_row(artifact, owned.get(artifact.fingerprint, "")) for artifact in artifacts]


def _stage_row(artifact: Artifact, owner: str) -> StageRow:
    notes = BuildNotes.of(artifact)
    return StageRow(
        stage=artifact.stage,
        made=_made(artifact) + (f" ({owner})" if owner else ""),
        size=readable_bytes(artifact.bytes),
        seconds=shown(notes.seconds, duration),
        images_per_second=shown(notes.images_per_second, lambda rate: f"{rate:,.1f}"),
        data_wait=shown(notes.data_wait_share, share),
        device=_device(notes),
        energy=shown(notes.watt_hours, lambda energy: f"{energy:,.0f} Wh"),
        fingerprint=artifact.fingerprint,
        tracking_run=notes.tracking_run,
    )


def total_cost(artifacts: Sequence[Artifact]) -> str:
    """Say what all stages cost together: time, and energy where it was measured."""
    notes = [BuildNotes.of(artifact) for artifact in artifacts]
    seconds, energy = sum(one.seconds or 0.0 for one in notes), sum(one.watt_hours or 0.0 for one in notes)
    return f"Together {duration(seconds)}" + (f" and {energy / 1000:,.2f} kWh" if energy else "") + "."


def demo_notes(stages: Mapping[str, Artifact], tokenizer: str = "kclip") -> list[str]:
    """Return what is small about the demo; nothing for a build of real images with a real CLIP."""
    notes = []
    if pictures := stages.get(DemoImagesRecord.STAGE):
        recipe, count = DemoImagesRecipe.of(pictures), DemoImagesRecord.of(pictures).images
        pixels = tokenizer_words(tokenizer).paper_pixels
        size = f" at {pixels} px" if pixels else ""
        notes.append(
            f"The images are {count:,} renderings of {min(recipe.limit or DIGITS, DIGITS):,} handwritten digits on "
            f"photographs, {recipe.image_size} px wide; the paper uses ImageNet-1k{size}."
        )
    if clip := stages.get(DEMO_CLIP):
        notes.append(
            f"The CLIP was trained on them for {shown(BuildNotes.of(clip).seconds, duration)} (zero-shot accuracy "
            f"{share(DemoClipRecord.of(clip).zero_shot_accuracy)}); it stands in for {_replaced_encoder(stages)}."
        )
    if notes and (fitted := stages.get(VQKD)):
        notes.append(
            f"VQ-KD was trained for {counted(VQKDRecord.of(fitted).steps, 'step')}; the paper takes a published "
            "one, which saw ImageNet-1k for 100 epochs."
        )
    vocabulary = TokensRecord.of(stages[TOKENS]).vocabulary
    if notes and vocabulary != _PAPERS_VOCABULARY:
        notes.append(f"The vocabulary has {vocabulary:,} tokens; the paper's has {_PAPERS_VOCABULARY:,}.")
    return notes


def _replaced_encoder(stages: Mapping[str, Artifact]) -> str:
    """Return whose place the demo's CLIP takes: its features are clustered, or a VQ-KD learns them, or both."""
    clips = [name for stage, name in ((FEATURES, "RN50x64"), (VQKD, "ViT-B/16")) if stage in stages]
    return f"OpenAI's {' and '.join(clips)}" if clips else "OpenAI's"


def option_table(artifact: Artifact) -> dict[str, str]:
    """Return the options that define a stage's result, `{option: value}`."""
    values = flatten(dict(artifact.recipe.options))
    name = ""
    if artifact.stage == FeaturesRecord.STAGE:
        name = FeaturesRecord.of(artifact).encoder
    elif artifact.stage == TokensRecord.STAGE:
        name = TokensRecord.of(artifact).encoder
    encoder = {"encoder.name": name} if name else {}
    return encoder | {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}


def machine_table(artifacts: Sequence[Artifact], data_root: Path) -> dict[str, str]:
    """Return the host, versions and data root; stages that were made with different ones show all of them."""
    found: dict[str, dict[str, None]] = {}
    for artifact in artifacts:
        notes = BuildNotes.of(artifact)
        for name, value in {"host": notes.host, **notes.versions}.items():
            if value:
                found.setdefault(name, {})[value] = None
    return {"data root": str(data_root), **{name: ", ".join(values) for name, values in found.items()}}


def share(value: float) -> str:
    """Return a share as percent, three digits where they suffice; only all of it is "100 %", only nothing is "0 %"."""
    percent = 100 * value
    if 0 < percent < 0.0001:
        return "less than 0.0001 %"
    if 99.9999 < percent < 100:
        return "more than 99.9999 %"
    distance = min(percent, 100 - percent)  # from the end that must not be reached by rounding
    digits = 1 if distance >= 0.1 else 2 if distance >= 0.01 else 4
    digits = 3 if percent < 0.1 and digits == 2 else digits
    return f"{percent:.{digits}f}".rstrip("0").rstrip(".") + " %"


def duration(seconds: float) -> str:
    """Write a time with two units at most: `8.1 s`, `54 s`, `2 min 14 s`, `2 h 12 min`."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min"


def shown(value: float | None, words: Callable[[float], str]) -> str:
    """Return a value in words; a dash where there is none, and what it is where it is no number."""
    if value is None:
        return ABSENT
    return words(value) if math.isfinite(value) else "not finite"


def _device(notes: BuildNotes) -> str:
    if notes.device is None:
        return ABSENT
    return notes.device if notes.processes == 1 else f"{notes.processes} × {notes.device}"  # noqa: RUF001


def _made(artifact: Artifact) -> str:
    if in_words := _MADE.get(artifact.stage):
        return in_words(artifact)
    return ", ".join(f"{name} {value}" for name, value in artifact.summary.items())


def _pretrained(artifact: Artifact) -> str:
    recipe, steps = PretrainRecipe.of(artifact), PretrainRecord.of(artifact).steps
    return f"{objective_name(recipe.objective)}, {recipe.backbone.name}, {counted(steps, 'step')}"


def _indexed(artifact: Artifact) -> str:
    record = IndexRecord.of(artifact)
    per_split = [f"{name} {count:,}" for name, count in record.splits.items()]
    classes = counted(record.classes, "class", "classes") if record.classes else "without labels"
    return f"{counted(record.images, 'image')} ({', '.join(per_split)}), {classes}"


def _evaluated(artifact: Artifact) -> str:
    record = EvaluateRecord.of(artifact)
    scores = [f"{name} {shown(value, lambda value: f'{value:.1f} %')}" for name, value in record.scores.items()]
    return f"{record.what}: {', '.join(scores)}"


def _sample(artifact: Artifact) -> str:
    record = FeaturesRecord.of(artifact)
    return f"{counted(record.sampled_vectors, 'vector')} of {counted(record.width, 'number')}"


def _clustered(artifact: Artifact) -> str:
    record = CodebookRecord.of(artifact)
    return f"{record.vocabulary:,} centroids, {counted(record.iterations, 'iteration')}"


def _trained_vqkd(artifact: Artifact) -> str:
    record = VQKDRecord.of(artifact)
    cosine = record.best_cosine
    reached = "" if cosine is None else f", cosine {shown(cosine, lambda cosine: f'{cosine:.2f}')}"
    return f"a VQ-KD, {counted(record.steps, 'step')}{reached}"


_MADE: dict[str, Callable[[Artifact], str]] = {
    DemoImagesRecord.STAGE: lambda made: counted(DemoImagesRecord.of(made).images, "picture"),
    IndexRecord.STAGE: _indexed,
    DemoClipRecord.STAGE: lambda made: f"a CLIP, {counted(DemoClipRecord.of(made).steps, 'step')}",
    FeaturesRecord.STAGE: _sample,
    CodebookRecord.STAGE: _clustered,
    VQKDRecord.STAGE: _trained_vqkd,
    TokensRecord.STAGE: lambda made: f"tokens of {counted(TokensRecord.of(made).good_images, 'image')}",
    PretrainRecord.STAGE: _pretrained,
    EvaluateRecord.STAGE: _evaluated,
}
