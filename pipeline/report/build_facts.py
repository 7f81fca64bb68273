"""What the artifacts of a build say about it, in numbers and words for people. Reads records only, no content."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.preflight import readable_bytes
from pipeline.report.page import ABSENT, KeyFigure, StageRow
from pipeline.report.pretrainings import PRETRAIN, objective_name
from pipeline.workspace import flatten
from storage.artifact import Artifact

DIGITS = 1_797  # in scikit-learn's data set, unless `demo_images.limit` takes fewer

Summary = Mapping[str, Any]


def key_figures(stages: Mapping[str, Artifact], grid: tuple[int, int]) -> list[KeyFigure]:
    """The numbers at the top of the page."""
    features = stages["extract_features"]
    facts, sample = stages["tokenize_images"].summary, features.summary
    vocabulary, patches = facts["vocabulary"], grid[0] * grid[1]
    used, good = round(facts["used_share"] * vocabulary), facts["images"] - facts["bad_images"]
    fraction = features.recipe["options"]["sample_fraction"]
    classes = stages["index_images"].summary["classes"]
    return [
        KeyFigure(
            "Images",
            f"{facts['images']:,}",
            f"in {counted(classes, 'class', 'classes')}" if classes else "without labels",
        ),
        KeyFigure("Bad images", f"{facts['bad_images']:,}", "marked invalid, without tokens"),
        KeyFigure("Patches per image", f"{patches:,}", f"{grid[0]} × {grid[1]}, {good * patches:,} tokens in all"),  # noqa: RUF001
        KeyFigure("Vocabulary", f"{vocabulary:,}", "centroids, the possible tokens"),
        KeyFigure("Used tokens", f"{used:,}", f"{share(facts['used_share'])} of the vocabulary"),
        KeyFigure(
            "Perplexity", f"{facts['perplexity']:,.1f}", f"{share(facts['perplexity'] / vocabulary)} of the vocabulary"
        ),
        KeyFigure("Most frequent token", share(facts["largest_share"]), "of all tokens"),
        KeyFigure(
            "Sampled vectors",
            f"{sample['sampled_vectors']:,}",
            f"of {sample['planned_vectors']:,} planned, {share(fraction)} of the patches of {_splits(features)}",
        ),
    ]


def stage_rows(artifacts: Sequence[Artifact]) -> list[StageRow]:
    """What each stage made and what it took."""
    return [
        StageRow(
            stage=artifact.stage,
            made=_made(artifact),
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


def demo_notes(stages: Mapping[str, Artifact]) -> list[str]:
    """What is small about the demo; nothing for a build of real images with a real CLIP."""
    notes = []
    if pictures := stages.get("make_demo_images"):
        options = pictures.recipe["options"]
        count = pictures.summary["train_images"] + pictures.summary["val_images"]
        notes.append(
            f"The images are {count:,} renderings of {min(options['limit'] or DIGITS, DIGITS):,} handwritten digits on "
            f"photographs, {options['image_size']} px wide; the paper uses ImageNet-1k at 448 px."
        )
    if clip := stages.get("train_demo_clip"):
        notes.append(
            f"The CLIP was trained on them for {shown(clip.notes.get('seconds'), duration)} (zero-shot accuracy "
            f"{share(clip.summary['zero_shot_accuracy'])}); it stands in for OpenAI's RN50x64."
        )
    if notes:
        vocabulary = stages["tokenize_images"].summary["vocabulary"]
        notes.append(f"The vocabulary has {vocabulary:,} tokens; the paper's has 8,192.")
    return notes


def option_tables(artifacts: Sequence[Artifact]) -> dict[str, dict[str, str]]:
    """The options that define each stage's result, `{stage: {option: value}}`."""
    tables = {}
    for artifact in artifacts:
        options = dict(artifact.recipe["options"])
        values = {name: json.dumps(value, ensure_ascii=False) for name, value in flatten(options).items()}
        if encoder := artifact.notes.get("encoder"):
            values = {"encoder.name": str(encoder), **values}
        tables[artifact.stage] = values
    return tables


def machine_table(artifacts: Sequence[Artifact], data_root: Path) -> dict[str, str]:
    """Host, versions and data root; stages that were made with different ones show all of them."""
    found: dict[str, dict[str, None]] = {}
    for artifact in artifacts:
        notes = {"host": artifact.notes.get("host"), **artifact.notes.get("versions", {})}
        for name, value in notes.items():
            if value:
                found.setdefault(name, {})[str(value)] = None
    return {"data root": str(data_root), **{name: ", ".join(values) for name, values in found.items()}}


def counted(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


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


def shown(value: Any, words: Callable[[Any], str]) -> str:
    """A value in words; a dash where there is none."""
    return ABSENT if value is None else words(value)


def _splits(features: Artifact) -> str:
    return ", ".join(features.recipe["options"]["splits"])


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
    return f"{objective_name(options['objective'])}, {options['backbone']['name']}, {counted(steps, 'step', 'steps')}"


def _indexed(facts: Summary) -> str:
    per_split = [
        f"{name.removesuffix('_images')} {count:,}" for name, count in facts.items() if name.endswith("_images")
    ]
    images, classes = counted(facts["images"], "image", "images"), counted(facts["classes"], "class", "classes")
    return f"{images} ({', '.join(per_split)}), {classes}"


def _evaluated(facts: Summary) -> str:
    scores = ", ".join(f"{name} {value:.1f} %" for name, value in facts.items() if isinstance(value, float))
    return f"{facts['what']}: {scores}"


_MADE: dict[str, Callable[[Summary], str]] = {
    "evaluate": _evaluated,
    "make_demo_images": lambda facts: f"{facts['train_images'] + facts['val_images']:,} pictures",
    "index_images": _indexed,
    "train_demo_clip": lambda facts: f"a CLIP, {facts['steps']:,} steps",
    "extract_features": lambda facts: f"{facts['sampled_vectors']:,} vectors of {facts['width']:,} numbers",
    "fit_codebook": lambda facts: f"{facts['vocabulary']:,} centroids, {facts['iterations']:,} iterations",
    "tokenize_images": lambda facts: f"tokens of {counted(facts['images'] - facts['bad_images'], 'image', 'images')}",
}
