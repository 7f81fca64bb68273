"""What the artifacts of a build say about it, in numbers and words for people. Reads records only, no content."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.engine.preflight import readable_bytes
from pipeline.engine.words import counted
from pipeline.engine.workspace import flatten
from pipeline.stages.report.page import ABSENT, KeyFigure, StageRow
from pipeline.stages.report.pretrainings import PRETRAIN, objective_name
from pipeline.stages.report.tokenizer_builds import DEMO_CLIP, FEATURES, TOKENS, VQKD, TokenizerBuild
from storage.artifact import Artifact

DIGITS = 1_797  # in scikit-learn's data set, unless `demo_images.limit` takes fewer
_PAPERS_PIXELS = {"kclip": 448, "vqkd": 224, "dalle": 112}  # that each tokenizer sees
_PAPERS_VOCABULARY = 8_192

Summary = Mapping[str, Any]


def key_figures(stages: Mapping[str, Artifact], tokenizer: TokenizerBuild) -> list[KeyFigure]:
    """The numbers at the top of the page."""
    facts, (rows, columns) = tokenizer.tokens.summary, tokenizer.grid
    vocabulary, patches = facts["vocabulary"], rows * columns
    used, good = round(facts["used_share"] * vocabulary), facts["images"] - facts["bad_images"]
    classes, tokens = stages["index_images"].summary["classes"], counted(good * patches, "token")
    figures = [
        KeyFigure(
            "Images",
            f"{facts['images']:,}",
            f"in {counted(classes, 'class', 'classes')}" if classes else "without labels",
        ),
        KeyFigure("Bad images", f"{facts['bad_images']:,}", "marked invalid, without tokens"),
        KeyFigure("Patches per image", f"{patches:,}", f"{rows} × {columns}, {tokens} in all"),  # noqa: RUF001
        KeyFigure("Vocabulary", f"{vocabulary:,}", f"{tokenizer.ids}, the possible tokens"),
        KeyFigure("Used tokens", f"{used:,}", f"{share(facts['used_share'])} of the vocabulary"),
        KeyFigure(
            "Perplexity", f"{facts['perplexity']:,.1f}", f"{share(facts['perplexity'] / vocabulary)} of the vocabulary"
        ),
        KeyFigure("Most frequent token", share(facts["largest_share"]), "of all tokens"),
    ]
    if features := stages.get(FEATURES):
        figures.append(_sampled(features))
    if fitted := stages.get(VQKD):
        figures.append(_fitted(fitted.summary))
    return figures


def _sampled(features: Artifact) -> KeyFigure:
    sample, options = features.summary, features.recipe["options"]
    return KeyFigure(
        "Sampled vectors",
        f"{sample['sampled_vectors']:,}",
        f"of {sample['planned_vectors']:,} planned, {share(options['sample_fraction'])} of the patches of "
        f"{', '.join(options['splits'])}",
    )


def _fitted(facts: Summary) -> KeyFigure:
    where = "validation" if "val_cosine" in facts else "training"
    after = f"in {where}, after {counted(facts['steps'], 'step')}"
    return KeyFigure("Cosine to the teacher", shown(_cosine(facts), lambda cosine: f"{cosine:.3f}"), after)


def _cosine(facts: Summary) -> float | None:
    """In validation, if there was one."""
    return facts.get("val_cosine", facts.get("cosine"))


def stage_rows(artifacts: Sequence[Artifact], tokenizers: Sequence[TokenizerBuild] = ()) -> list[StageRow]:
    """What each stage made and what it took; of several tokenizers, for which of them."""
    owners = {artifact.fingerprint: one.name for one in tokenizers for artifact in one.stages.values()}
    owned = owners if len(tokenizers) > 1 else {}
    return [
        StageRow(
            stage=artifact.stage,
            made=_made(artifact) + (f" ({owned[artifact.fingerprint]})" if artifact.fingerprint in owned else ""),
            size=readable_bytes(artifact.bytes),
            seconds=shown(artifact.notes.get("seconds"), duration),
            images_per_second=shown(artifact.notes.get("images_per_second"), lambda rate: f"{rate:,.1f}"),
            data_wait=shown(artifact.notes.get("data_wait_share"), share),
            device=_device(artifact),
            energy=shown(artifact.notes.get("watt_hours"), lambda energy: f"{energy:,.0f} Wh"),
            fingerprint=artifact.fingerprint,
            tracking_run=artifact.notes.get("tracking_run", ""),
        )
        for artifact in artifacts
    ]


def total_cost(artifacts: Sequence[Artifact]) -> str:
    """All stages together: time, and energy where it was measured."""
    seconds = sum(artifact.notes.get("seconds", 0.0) for artifact in artifacts)
    energy = sum(artifact.notes.get("watt_hours", 0.0) for artifact in artifacts)
    return f"Together {duration(seconds)}" + (f" and {energy / 1000:,.2f} kWh" if energy else "") + "."


def demo_notes(stages: Mapping[str, Artifact], tokenizer: str = "kclip") -> list[str]:
    """What is small about the demo; nothing for a build of real images with a real CLIP."""
    notes = []
    if pictures := stages.get("make_demo_images"):
        options = pictures.recipe["options"]
        count = pictures.summary["train_images"] + pictures.summary["val_images"]
        size = f" at {_PAPERS_PIXELS[tokenizer]} px" if tokenizer in _PAPERS_PIXELS else ""
        notes.append(
            f"The images are {count:,} renderings of {min(options['limit'] or DIGITS, DIGITS):,} handwritten digits on "
            f"photographs, {options['image_size']} px wide; the paper uses ImageNet-1k{size}."
        )
    if clip := stages.get(DEMO_CLIP):
        notes.append(
            f"The CLIP was trained on them for {shown(clip.notes.get('seconds'), duration)} (zero-shot accuracy "
            f"{share(clip.summary['zero_shot_accuracy'])}); it stands in for {_stood_for(stages)}."
        )
    if notes and (fitted := stages.get(VQKD)):
        notes.append(
            f"VQ-KD was trained for {counted(fitted.summary['steps'], 'step')}; the paper takes a published "
            "one, which saw ImageNet-1k for 100 epochs."
        )
    vocabulary = stages[TOKENS].summary["vocabulary"]
    if notes and vocabulary != _PAPERS_VOCABULARY:
        notes.append(f"The vocabulary has {vocabulary:,} tokens; the paper's has {_PAPERS_VOCABULARY:,}.")
    return notes


def _stood_for(stages: Mapping[str, Artifact]) -> str:
    """Whose place the demo's CLIP takes: its features are clustered, or a VQ-KD learns them, or both."""
    clips = [name for stage, name in ((FEATURES, "RN50x64"), (VQKD, "ViT-B/16")) if stage in stages]
    return f"OpenAI's {' and '.join(clips)}" if clips else "OpenAI's"


def option_table(artifact: Artifact) -> dict[str, str]:
    """The options that define a stage's result, `{option: value}`."""
    values = flatten(dict(artifact.recipe["options"]))
    encoder = {"encoder.name": str(artifact.notes["encoder"])} if artifact.notes.get("encoder") else {}
    return encoder | {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}


def machine_table(artifacts: Sequence[Artifact], data_root: Path) -> dict[str, str]:
    """Host, versions and data root; stages that were made with different ones show all of them."""
    found: dict[str, dict[str, None]] = {}
    for artifact in artifacts:
        notes = {"host": artifact.notes.get("host"), **artifact.notes.get("versions", {})}
        for name, value in notes.items():
            if value:
                found.setdefault(name, {})[str(value)] = None
    return {"data root": str(data_root), **{name: ", ".join(values) for name, values in found.items()}}


def share(value: float) -> str:
    """A share as percent, three digits where they suffice; only all of it is "100 %", only nothing is "0 %"."""
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
    """Two units at most: `8.1 s`, `54 s`, `2 min 14 s`, `2 h 12 min`."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min"


def shown(value: float | None, words: Callable[[float], str]) -> str:
    """A value in words; a dash where there is none, and what it is where it is no number."""
    if value is None:
        return ABSENT
    return words(value) if math.isfinite(value) else "not finite"


def _device(artifact: Artifact) -> str:
    name, count = artifact.notes.get("device"), artifact.notes.get("processes", 1)
    if name is None:
        return ABSENT
    return str(name) if count == 1 else f"{count} × {name}"  # noqa: RUF001


def _made(artifact: Artifact) -> str:
    if artifact.stage == PRETRAIN:
        return _pretrained(artifact)
    if in_words := _MADE.get(artifact.stage):
        return in_words(artifact.summary)
    return ", ".join(f"{name} {value}" for name, value in artifact.summary.items())


def _pretrained(artifact: Artifact) -> str:
    options, steps = artifact.recipe["options"], artifact.summary["steps"]
    return f"{objective_name(options['objective'])}, {options['backbone']['name']}, {counted(steps, 'step')}"


def _indexed(facts: Summary) -> str:
    per_split = [
        f"{name.removesuffix('_images')} {count:,}" for name, count in facts.items() if name.endswith("_images")
    ]
    classes = counted(facts["classes"], "class", "classes") if facts["classes"] else "without labels"
    return f"{counted(facts['images'], 'image')} ({', '.join(per_split)}), {classes}"


def _evaluated(facts: Summary) -> str:
    numbers = {name: value for name, value in facts.items() if isinstance(value, float)}
    scores = ", ".join(f"{name} {shown(value, lambda value: f'{value:.1f} %')}" for name, value in numbers.items())
    return f"{facts['what']}: {scores}"


def _trained_vqkd(facts: Summary) -> str:
    cosine = _cosine(facts)
    reached = "" if cosine is None else f", cosine {shown(cosine, lambda cosine: f'{cosine:.2f}')}"
    return f"a VQ-KD, {counted(facts['steps'], 'step')}{reached}"


_MADE: dict[str, Callable[[Summary], str]] = {
    "evaluate": _evaluated,
    "make_demo_images": lambda facts: counted(facts["train_images"] + facts["val_images"], "picture"),
    "index_images": _indexed,
    "train_demo_clip": lambda facts: f"a CLIP, {counted(facts['steps'], 'step')}",
    "extract_features": lambda facts: (
        f"{counted(facts['sampled_vectors'], 'vector')} of {counted(facts['width'], 'number')}"
    ),
    "fit_codebook": lambda facts: f"{facts['vocabulary']:,} centroids, {counted(facts['iterations'], 'iteration')}",
    "fit_vqkd": _trained_vqkd,
    "tokenize_images": lambda facts: f"tokens of {counted(facts['images'] - facts['bad_images'], 'image')}",
}
