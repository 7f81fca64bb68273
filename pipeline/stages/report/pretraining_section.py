"""The section of a report on pre-trainings: curves, a table, and what may be concluded from them."""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from models.objectives import OBJECTIVES
from models.vit.options import SHAPES
from pipeline.engine.stage_record import BuildNotes
from pipeline.engine.words import counted
from pipeline.engine.workspace import flatten
from pipeline.stages.report import build_facts
from pipeline.stages.report.build_facts import ABSENT, share, shown
from pipeline.stages.report.figures import light_and_dark
from pipeline.stages.report.page_parts import PageFigure, PretrainingRow, PretrainingSection
from pipeline.stages.report.pretraining_figure import BlindGuess, curves_figure
from pipeline.stages.report.pretrainings import Pretraining, objective_name
from pipeline.stages.report.tokenizer_builds import TokenizerBuild

CURVES = "curves.png"


def pretraining_section(
    pretrainings: Sequence[Pretraining], tokenizers: Sequence[TokenizerBuild]
) -> PretrainingSection:
    """Put all pre-trainings side by side; `tokenizers` are those whose tokens they learned, or more."""
    learned = {pretraining.tokens for pretraining in pretrainings}
    guesses = [_blind_guess(one) for one in tokenizers if one.tokens.digest in learned]
    return PretrainingSection(
        figure=PageFigure(
            CURVES,
            "How well tokens are predicted",
            _caption(pretrainings, guesses),
            *light_and_dark(lambda palette: curves_figure(pretrainings, guesses, palette)),
        ),
        rows=[_row(pretraining) for pretraining in pretrainings],
        speed=_speed(pretrainings),
        cautions=(_tasks(pretrainings), seeds_behind(pretrainings)),
        labels=[pretraining.label for pretraining in pretrainings],
        differing_options=split_options(pretrainings)[1],
    )


def _blind_guess(tokenizer: TokenizerBuild) -> BlindGuess:
    record = tokenizer.record
    return BlindGuess(tokenizer.name, math.log(record.perplexity), record.largest_share)


def split_options(pretrainings: Sequence[Pretraining]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return the options that all have in common, `{option: value}`, and the rest, `{option: [value of each]}`."""
    tables = [flatten(dict(pretraining.options)) for pretraining in pretrainings]
    shared, differing = {}, {}
    for name in dict.fromkeys(name for table in tables for name in table):
        values = [json.dumps(table[name], ensure_ascii=False) if name in table else ABSENT for table in tables]
        if len(set(values)) == 1:
            shared[name] = values[0]
        else:
            differing[name] = values
    return shared, differing


def seeds_behind(pretrainings: Sequence[Pretraining]) -> str:
    """Return how many seeds are behind each setting, and what follows from it."""
    seeds: dict[str, set[int]] = {}
    for pretraining in pretrainings:
        alike = json.dumps({**pretraining.options, "seed": None}, sort_keys=True)
        seeds.setdefault(alike, set()).add(pretraining.recipe.seed)
    counts = sorted(len(found) for found in seeds.values())
    if counts[-1] == 1:
        runs = "This is one run with one seed" if len(pretrainings) == 1 else "Every row is one run with one seed"
        return f"{runs}: what another seed would change is not measured here, so a small difference may be chance."
    many = str(counts[0]) if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
    return f"Each setting was run with {many} seeds, a row each: rows that differ in the seed only show what is chance."


def what_was_learned(pretrainings: Sequence[Pretraining]) -> str:
    """Say in a sentence of the introduction what was learned."""
    names = list(dict.fromkeys(objective_name(pretraining.objective) for pretraining in pretrainings))
    objectives = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    learner = "a Vision Transformer" if len(pretrainings) == 1 else f"{len(pretrainings)} Vision Transformers"
    return f"With {objectives}, {learner} learned to predict the tokens of hidden patches."


def what_is_small(pretrainings: Sequence[Pretraining]) -> str:
    """Say in a sentence what is small about the demo's pre-training."""
    lengths = _each(pretrainings, _length)
    shapes = _each(pretrainings, lambda one: "{0.width} wide and {0.depth} blocks deep".format(_shape(one)))
    return (
        f"Pre-training takes {lengths}, with a Vision Transformer {shapes}; the paper's takes 300 epochs of "
        "ImageNet-1k's 1.28 million, and its smallest network is 192 wide and 12 blocks deep."
    )


def _row(pretraining: Pretraining) -> PretrainingRow:
    recipe, record, notes = pretraining.recipe, pretraining.record, BuildNotes.of(pretraining.artifact)
    return PretrainingRow(
        label=pretraining.label,
        backbone=recipe.backbone.name,
        predicted=f"{record.targets:,} of {record.patches:,}",
        predicted_share=share(record.targets / record.patches),
        seed=str(recipe.seed),
        training=tuple(dict.fromkeys((pretraining.length.words, counted(record.steps, "step")))),
        loss=shown(record.token_loss, _three_decimals),
        val_loss=shown(record.val_token_loss, _three_decimals),
        val_accuracy=shown(record.val_token_accuracy, share),
        images_per_second=shown(notes.images_per_second, lambda rate: f"{rate:,.1f}"),
        seconds=shown(notes.seconds, build_facts.duration),
        fingerprint=pretraining.artifact.fingerprint,
        tracking_run=notes.tracking_run,
    )


def _caption(pretrainings: Sequence[Pretraining], guesses: Sequence[BlindGuess]) -> str:
    points = max(one.recipe.training.report_steps for one in pretrainings)
    noise = [
        words
        for words, strength in (
            ("stochastic depth", max(one.recipe.backbone.drop_path_rate for one in pretrainings)),
            ("colour jitter", max(one.recipe.colour_jitter for one in pretrainings)),
        )
        if strength
    ]
    under = f", under {' and '.join(noise)}" if noise else ""
    validation = (
        "; validation measures the weights as they stand, without any of this, and so may be the better of the two"
        if any(one.record.val_images for one in pretrainings)
        else ""
    )
    entropies = _of_each(guesses, lambda guess: f"{guess.token_loss:.2f} nats")
    shares = _of_each(guesses, lambda guess: share(guess.token_accuracy))
    return (
        "Left: the mean cross entropy of the predicted patches' tokens. Right: the share of those whose most probable "
        "token is the right one. Dotted is the blind guess, which never looks at the image: always predicting the "
        f"token frequencies costs their entropy, {entropies}, and always naming the most frequent token is right for "
        f"{shares}. A point of the training is the mean over up to "
        f"{counted(points, 'step')} in which the weights change{under}{validation}."
    )


def _of_each(guesses: Sequence[BlindGuess], words: Callable[[BlindGuess], str]) -> str:
    """Return `3.20 nats`; of several tokenizers `3.20 nats (k-CLIP) and 2.10 nats (VQ-KD)`."""
    if len(guesses) == 1:
        return words(guesses[0])
    return " and ".join(f"{words(guess)} ({guess.tokenizer})" for guess in guesses)


def _tasks(pretrainings: Sequence[Pretraining]) -> str:
    tasks = list(dict.fromkeys(_task(pretraining) for pretraining in pretrainings))
    several = len({pretraining.objective for pretraining in pretrainings}) > 1
    meaning = (
        "These are different tasks: their losses and accuracies do not rank the objectives, and a lower loss does not "
        "make a better backbone."
        if several
        else "The loss tells how well this is done. It does not compare with the loss of another objective, and a "
        "lower one does not make a better backbone."
    )
    return " ".join([*tasks, meaning, "What a backbone is worth only downstream tasks tell."])


def _task(pretraining: Pretraining) -> str:
    predicted, patches = pretraining.record.targets, pretraining.record.patches
    known = OBJECTIVES.get(pretraining.objective)  # an artifact outlives the code of its objective
    how = f", {known.load().task}".format(context=patches - predicted, most=patches - 1) if known else ""
    return f"{objective_name(pretraining.objective)} predicts {predicted:,} of {patches:,} patches{how}."


def _speed(pretrainings: Sequence[Pretraining]) -> str:
    machines = _each(
        pretrainings,
        lambda one: _machine(BuildNotes.of(one.artifact)),
    )
    images = _each(pretrainings, lambda one: counted(one.record.val_images, "image"))
    return (
        f"Losses in nats; the one in training is the last point of its curve. Validation on {images}. Time and speed "
        f"on {machines}, validation included; of a run that was resumed, those of its last part."
    )


def _machine(notes: BuildNotes) -> str:
    return f"{notes.device or 'an unknown device'} with {counted(notes.processes, 'process', 'processes')}"


def _each(pretrainings: Sequence[Pretraining], words: Callable[[Pretraining], Any]) -> str:
    """Say what holds for each pre-training, once where it is the same."""
    return " or ".join(dict.fromkeys(str(words(pretraining)) for pretraining in pretrainings))


def _length(pretraining: Pretraining) -> str:
    length, images = pretraining.length, counted(pretraining.record.train_images, "image")
    return f"{length.words} {'of' if length.steps is None else 'on'} {images}"


def _shape(pretraining: Pretraining) -> Any:
    return SHAPES[pretraining.recipe.backbone.name]


def _three_decimals(value: float) -> str:
    return f"{value:.3f}"
