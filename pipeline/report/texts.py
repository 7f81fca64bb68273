"""What a report says in sentences about the build as a whole."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.report import build_facts
from pipeline.report.build_content import BuildContent
from pipeline.report.pretraining_section import what_is_small, what_was_learned
from pipeline.report.pretrainings import Pretraining
from storage.artifact import Artifact


def title(stages: Mapping[str, Artifact], pretrainings: Sequence[Pretraining]) -> str:
    return f"{'Pre-training on ' if pretrainings else ''}k-CLIP tokens of {_data_set(stages)}"


def introduction(content: BuildContent, pretrainings: Sequence[Pretraining]) -> str:
    rows, columns = content.grid
    learned = f"{what_was_learned(pretrainings)} " if pretrainings else ""
    shown = "how pre-training went, what was built" if pretrainings else "what was built"
    return (
        f"A frozen CLIP sees each image as {rows} × {columns} patches. k-means on a sample of the patch features gave "  # noqa: RUF001
        f"{content.codebook.vocabulary:,} centroids, and every patch got the id of its nearest centroid: its token. "
        f"{learned}This page says {shown}, how fast, how evenly the vocabulary is used, and what some tokens look "
        "like. Method: k-CLIP, from “Learning to Mask and Permute Visual Tokens for Vision Transformer Pre-Training” "
        "(Baraldi et al.). Perplexity is e^H with H the entropy of the token frequencies: that many equally frequent "
        "tokens would carry the same information."
    )


def demo_notes(stages: Mapping[str, Artifact], pretrainings: Sequence[Pretraining]) -> list[str]:
    """What is small about the demo; nothing for a build of real images with a real CLIP."""
    notes = build_facts.demo_notes(stages)
    return [*notes, what_is_small(pretrainings)] if notes and pretrainings else notes


def _data_set(stages: Mapping[str, Artifact]) -> str:
    if "make_demo_images" in stages:
        return "the embedded demo"
    return Path(stages["index_images"].notes.get("source", "")).expanduser().name or "a data set"
