"""What a report says in sentences about the build as a whole."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.stages.records import DemoImagesRecord, IndexRecord
from pipeline.stages.report import build_facts
from pipeline.stages.report.pretraining_section import what_is_small, what_was_learned
from pipeline.stages.report.pretrainings import Pretraining
from pipeline.stages.report.tokenizer_builds import TokenizerBuild
from storage.artifact import Artifact


def title(stages: Mapping[str, Artifact], tokenizers: Sequence[TokenizerBuild], trained: Sequence[Pretraining]) -> str:
    """Name the tokenizers whose tokens were learned; without a pre-training, all of them."""
    learned = {pretraining.tokens for pretraining in trained}
    named = [one for one in tokenizers if not learned or one.tokens.digest in learned]
    kinds = dict.fromkeys(one.words.before_a_noun for one in named)
    return f"{'Pre-training on ' if trained else ''}{_listed(list(kinds))} tokens of {_data_set(stages)}"


def introduction(tokenizers: Sequence[TokenizerBuild], pretrainings: Sequence[Pretraining]) -> str:
    """Introduce the page, which shows most of the first tokenizer."""
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
    """Return how a tokenizer makes tokens of an image; of one that nobody described, that it does."""
    grid = "{} × {}".format(*tokenizer.grid)  # noqa: RUF001
    return tokenizer.words.method.format(grid=grid, vocabulary=tokenizer.record.vocabulary)


def whose_method(tokenizer: TokenizerBuild) -> str:
    source = tokenizer.words.source
    return f"Method: {source}." if source else ""


def demo_notes(stages: Mapping[str, Artifact], tokenizer: str, pretrainings: Sequence[Pretraining]) -> list[str]:
    """Return what is small about the demo; nothing for a build of real images with a real CLIP."""
    notes = build_facts.demo_notes(stages, tokenizer)
    return [*notes, what_is_small(pretrainings)] if notes and pretrainings else notes


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _data_set(stages: Mapping[str, Artifact]) -> str:
    if DemoImagesRecord.STAGE in stages:
        return "the embedded demo"
    return Path(IndexRecord.of(stages[IndexRecord.STAGE]).source).expanduser().name or "a data set"
