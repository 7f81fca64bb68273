"""What a report says in sentences about the build as a whole."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.stages.records import DemoImagesRecord, IndexRecord
from pipeline.stages.report import build_facts
from pipeline.stages.report.pretraining_section import what_is_small, what_was_learned
from pipeline.stages.report.pretrainings import Pretraining
from pipeline.stages.report.tokenizer_builds import TokenizerBuild, tokenizer_adjective
from storage.artifact import Artifact

_CLUSTERED = "gave {vocabulary:,} centroids, and every patch got the id of its nearest centroid: its token."
_PAPER = "“Learning to Mask and Permute Visual Tokens for Vision Transformer Pre-Training” (Baraldi et al.)"
# What becomes of an image, and whose method it is.
_METHODS = {
    "kclip": (
        f"A frozen CLIP sees each image as {{grid}} patches. k-means on a sample of the patch features {_CLUSTERED}",
        f"k-CLIP, from {_PAPER}",
    ),
    "random": (
        "A network of CLIP's shape, but with random weights, sees each image as {grid} patches. k-means on a sample of "
        f"the patch features {_CLUSTERED}",
        f"k-CLIP, from {_PAPER}, without what CLIP has learned",
    ),
    "pixels": (
        f"Each image is cut into {{grid}} patches. k-means on the pixels of a sample of them {_CLUSTERED}",
        "vector quantisation, without any network, as in “Vector Quantization” (Gray, 1984)",
    ),
    "vqkd": (
        "A Vision Transformer sees each image as {grid} patches and gives each a short vector; the nearest of "
        "{vocabulary:,} codes, by cosine, is the patch's token. Transformer and codes were trained together, so that "
        "a decoder could predict a teacher's features from the codes alone.",
        "VQ-KD, from “BEiT v2: Masked Image Modeling with Vector-Quantized Visual Tokenizers” (Peng et al.)",
    ),
    "dalle": (
        "A convolutional network sees each image as {grid} patches and names the most likely of {vocabulary:,} codes "
        "for each: its token. It was trained as the first half of an autoencoder, whose second half draws the image "
        "from the codes.",
        "the encoder of DALL-E, from “Zero-Shot Text-to-Image Generation” (Ramesh et al.)",
    ),
}


def title(stages: Mapping[str, Artifact], tokenizers: Sequence[TokenizerBuild], trained: Sequence[Pretraining]) -> str:
    """Names the tokenizers whose tokens were learned; without a pre-training, all of them."""
    learned = {pretraining.tokens for pretraining in trained}
    named = [one for one in tokenizers if not learned or one.tokens.digest in learned]
    kinds = dict.fromkeys(tokenizer_adjective(one.kind) for one in named)
    return f"{'Pre-training on ' if trained else ''}{_listed(list(kinds))} tokens of {_data_set(stages)}"


def introduction(tokenizers: Sequence[TokenizerBuild], pretrainings: Sequence[Pretraining]) -> str:
    """The first tokenizer is the one that the page shows most of."""
    first = tokenizers[0]
    sentences = [what_it_does(first)]
    if len(tokenizers) > 1:
        sentences.append(
            f"It is one of {len(tokenizers)} tokenizers that are compared; whatever is said of one without naming it "
            f"is said of {first.name}."
        )
    if pretrainings:
        sentences.append(what_was_learned(pretrainings))
    shown = "how pre-training went, what was built" if pretrainings else "what was built"
    sentences += [
        f"This page says {shown}, how fast, how evenly the vocabulary is used, and what some tokens look like.",
        whose_method(first),
        "Perplexity is e^H with H the entropy of the token frequencies: that many equally frequent tokens would carry "
        "the same information.",
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def what_it_does(tokenizer: TokenizerBuild) -> str:
    """How a tokenizer makes tokens of an image; of one that nobody described, that it does."""
    words, _ = _METHODS.get(tokenizer.kind, ("Each image becomes {grid} tokens of {vocabulary:,}.", ""))
    grid = "{} × {}".format(*tokenizer.grid)  # noqa: RUF001
    return words.format(grid=grid, vocabulary=tokenizer.record.vocabulary)


def whose_method(tokenizer: TokenizerBuild) -> str:
    _, cited = _METHODS.get(tokenizer.kind, ("", ""))
    return f"Method: {cited}." if cited else ""


def demo_notes(stages: Mapping[str, Artifact], tokenizer: str, pretrainings: Sequence[Pretraining]) -> list[str]:
    """What is small about the demo; nothing for a build of real images with a real CLIP."""
    notes = build_facts.demo_notes(stages, tokenizer)
    return [*notes, what_is_small(pretrainings)] if notes and pretrainings else notes


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _data_set(stages: Mapping[str, Artifact]) -> str:
    if DemoImagesRecord.STAGE in stages:
        return "the embedded demo"
    return Path(IndexRecord.of(stages[IndexRecord.STAGE]).source).expanduser().name or "a data set"
