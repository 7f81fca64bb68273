"""What a report says in sentences about the build as a whole."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.report import build_facts
from pipeline.report.build_content import BuildContent
from pipeline.report.codebook_pictures import TokenExamples
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


def codebook_caption(examples: tuple[TokenExamples, ...]) -> str:
    text = (
        "Each row is a token, from frequent to rare; each picture is another image that holds it, with one such patch "
        "outlined. A good token shows the same thing in every outline."
    )
    if any(example.majority >= 0 for example in examples):
        text += (
            " Beside it stands the most frequent class of the token's images, and its share. Green: an image of that "
            "class; red: of another; yellow: without a label. Of each range of frequencies a token whose images agree "
            "on a class is shown: the vocabulary's good side."
        )
    return text


def token_label(example: TokenExamples, classes: tuple[str, ...]) -> tuple[str, str]:
    """Title and two lines of detail."""
    title, images = f"Token {example.token:,}", build_facts.counted(example.images, "image", "images")
    if example.majority >= 0:
        known = example.majority < len(classes)
        title += f": {classes[example.majority] if known else f'class {example.majority}'}"
        images = f"{build_facts.share(example.share)} of {images}"
    return title, f"{images}\n{build_facts.counted(example.patches, 'patch', 'patches')}"


def _data_set(stages: Mapping[str, Artifact]) -> str:
    if "make_demo_images" in stages:
        return "the embedded demo"
    return Path(stages["index_images"].notes.get("source", "")).expanduser().name or "a data set"
