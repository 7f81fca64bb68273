"""The section of a report that puts tokenizers side by side: how much of the class their tokens carry.

Two measures of it, on the same images for all of them. Purity is the share of patches in images of their token's
majority class (`token_statistics`); it looks at one patch at a time and needs no training. The accuracy of a classifier
that is given all tokens of an image, and nothing else of it, is the paper's (its Table 7).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.engine.words import counted
from pipeline.stages.recipe_views import EvaluateRecipe
from pipeline.stages.records import IndexRecord
from pipeline.stages.report.build_content import BuildContent
from pipeline.stages.report.build_facts import share
from pipeline.stages.report.our_results import Comparison, OurResult
from pipeline.stages.report.page_parts import ABSENT
from pipeline.stages.report.texts import what_it_does, whose_method
from pipeline.stages.report.token_statistics import CountedImages, count_tokens, images_to_count
from pipeline.stages.report.tokenizer_builds import TokenizerBuild
from storage.artifact import Artifact

_NETWORKS = {"MLP": "MLP on tokens", "ViT-T": "ViT on tokens"}
_PURITY = "Purity"
_ACCURACY = "top1_tokens_as_input"


@dataclass(frozen=True)
class Measure:
    """A number that tokenizers are compared by: in percent, how sure it is, and whether none is higher."""

    value: str
    details: Sequence[str]
    is_best: bool


@dataclass(frozen=True)
class TokenizerRow:
    """A tokenizer, ready to print; `measures` has one for each column."""

    name: str
    made_from: str
    patches: str
    vocabulary: str
    used: str
    used_share: str
    perplexity: str
    measures: Sequence[Measure]


@dataclass(frozen=True)
class TokenizersSection:
    """Tokenizers side by side, best first.

    Attributes:
        columns: headings of the measures; one that no tokenizer has is left out.
        reading: what the table says.
        measured: how its measures were taken.
        others: what the tokenizers are that the page's introduction is silent about, `{name: sentences}`.
    """

    columns: Sequence[str]
    rows: Sequence[TokenizerRow]
    reading: str
    measured: str
    others: Mapping[str, str]


@dataclass(frozen=True)
class _Number:
    value: float
    details: tuple[str, ...] = ()


def tokenizers_section(
    content: BuildContent,
    tokenizers: Sequence[TokenizerBuild],
    results: Sequence[OurResult],
    evaluations: Mapping[str, Artifact],
) -> TokenizersSection:
    """Compare tokenizers of the same images; those of other images are left out.

    Args:
        content: of the build that the page tells of; its image index has the labels.
        tokenizers: the build's first.
        results: scores of `evaluations`, of which those of tokens are taken.
    """
    same = [one for one in tokenizers if one.attributes["image_index"] == content.stages[IndexRecord.STAGE].digest]
    shared = _images_of_all(content, same)
    accuracies = {heading: _accuracies(same, results, evaluations, network) for network, heading in _NETWORKS.items()}
    purities = [_purity(one, shared, content) for one in same]
    columns = {_PURITY: purities, **accuracies}
    columns = {heading: numbers for heading, numbers in columns.items() if any(numbers)}
    order = _order([*accuracies.values(), purities])
    return TokenizersSection(
        columns=list(columns),
        rows=[_row(same[place], [_measure(numbers, place) for numbers in columns.values()]) for place in order],
        reading=_reading([same[place] for place in order], list(columns)),
        measured=_measured(content, shared, list(columns)),
        others={one.name: f"{what_it_does(one)} {whose_method(one)}" for one in same if one.kind != same[0].kind},
    )


def _images_of_all(content: BuildContent, tokenizers: Sequence[TokenizerBuild]) -> CountedImages:
    """Return, of the split that the page counts on, the images that have tokens of every tokenizer."""
    status = np.maximum.reduce([one.store.status for one in tokenizers])  # 0 is valid
    return images_to_count(content.index, status, split=content.counted.split)


def _purity(tokenizer: TokenizerBuild, judged: CountedImages, content: BuildContent) -> _Number | None:
    if not judged.labelled:
        return None
    store = tokenizer.store
    statistics = count_tokens(store.load(), judged, labels=content.index.labels, vocabulary=store.vocabulary)
    return _Number(100 * statistics.overall_purity)


def _accuracies(
    tokenizers: Sequence[TokenizerBuild],
    results: Sequence[OurResult],
    evaluations: Mapping[str, Artifact],
    network: str,
) -> list[_Number | None]:
    """Return, for each tokenizer, the mean over seeds."""
    judged = {str(made.path): EvaluateRecipe.of(made).tokens for made in evaluations.values()}
    found: dict[str | None, list[OurResult]] = {}
    for result in results:
        if (result.metric, result.backbone) == (_ACCURACY, network):
            found.setdefault(judged.get(result.folder), []).append(result)
    return [_mean(found.get(one.tokens.digest, [])) for one in tokenizers]


def _mean(results: Sequence[OurResult]) -> _Number | None:
    if not results:
        return None
    mean = Comparison(tuple(results))
    if mean.value is None:
        return None
    interval = "[{:.1f}, {:.1f}]".format(*mean.interval) if mean.interval else "no interval"
    return _Number(mean.value, (interval, f"{mean.seeds} seeds") if mean.seeds > 1 else (interval,))


def _order(measures: Sequence[Sequence[_Number | None]]) -> list[int]:
    """Return the places of tokenizers, best first by the first measure; those without it after them, by the next."""
    rows = list(zip(*measures, strict=True))
    return sorted(range(len(rows)), key=lambda place: [-one.value if one else 1 for one in rows[place]])


def _measure(numbers: Sequence[_Number | None], place: int) -> Measure:
    number, known = numbers[place], [one.value for one in numbers if one]
    if number is None:
        return Measure(ABSENT, (), is_best=False)
    return Measure(f"{number.value:.1f}", number.details, is_best=len(known) > 1 and number.value == max(known))


def _row(tokenizer: TokenizerBuild, measures: Sequence[Measure]) -> TokenizerRow:
    record = tokenizer.record
    return TokenizerRow(
        name=tokenizer.name,
        made_from=tokenizer.made_from,
        patches="{} × {}".format(*tokenizer.grid),  # noqa: RUF001
        vocabulary=f"{record.vocabulary:,}",
        used=f"{record.used:,}",
        used_share=share(record.used_share),
        perplexity=f"{record.perplexity:,.1f}",
        measures=measures,
    )


def _reading(tokenizers: Sequence[TokenizerBuild], columns: Sequence[str]) -> str:
    if not columns:
        return "All tokenizers saw the same images."
    plain = [one.name for one in tokenizers if one.words.is_baseline]
    verb = "says" if len(plain) == 1 else "say"
    baseline = f"; {' and '.join(plain)} {verb} what clustering alone gives" if plain else ""
    question = "How much of an image's class do its tokens carry?"
    return f"{question} All are judged on the same images, the best in bold{baseline}."


def _measured(content: BuildContent, judged: CountedImages, columns: Sequence[str]) -> str:
    sentences = []
    if set(columns) & set(_NETWORKS.values()):
        sentences.append(
            "MLP and ViT are classifiers that are given the tokens of an image and nothing else of it; shown is their "
            "accuracy on the validation images in percent, with its 95 % bootstrap interval; of several seeds their "
            "mean, and an interval from the lowest bound to the highest."
        )
    if _PURITY in columns:
        sentences.append(
            "Purity is the share of patches, in percent, that lie in an image of their token's majority class, over "
            f"the {counted(len(judged), 'labelled image')} of the split {judged.split}; tokens that have nothing to do "
            f"with the classes would have about {share(content.largest_class_share)}. It rises with the vocabulary "
            "whatever the tokens are, so it compares those with vocabularies of one size."
        )
    return " ".join(sentences)
