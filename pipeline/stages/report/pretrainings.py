"""The pre-trainings that a report is about: which there are, what they are called, and their curves.

A report may tell of several with one objective (other backbones, other seeds), so each gets a label that tells it from
the rest. Labels and order follow from the set of pre-trainings alone, not from the order in which they were run.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress
from typing import Any

from models.objectives import OBJECTIVES
from pipeline.stages.recipe_views import PretrainRecipe
from pipeline.stages.records import PretrainRecord
from pipeline.training.history import read_history
from pipeline.training.options import TrainingLength
from storage.artifact import Artifact

PRETRAIN = PretrainRecord.STAGE


@dataclass(frozen=True)
class Curve:
    """A quantity over training time; empty when it was never measured."""

    epochs: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True)
class Pretraining:
    """A pre-training as a report shows it.

    Attributes:
        distinction: what tells it from others with its objective, e.g. "" or ", seed 1".
        variant: 0 for the first with its objective, 1 for the second, ...
    """

    artifact: Artifact
    distinction: str
    variant: int

    @property
    def label(self) -> str:
        """What it is called beside others, e.g. "MaPeT" or "MaPeT, seed 1"."""
        return objective_name(self.objective) + self.distinction

    @property
    def objective(self) -> str:
        """Its key in `OBJECTIVES`."""
        return self.recipe.objective

    @property
    def input_name(self) -> str:
        """Its name among the inputs of a report: "pretrain-mapet", "pretrain-mapet-2" for the second one."""
        return f"{PRETRAIN}-{self.objective}" + (f"-{self.variant + 1}" if self.variant else "")

    @property
    def options(self) -> Mapping[str, Any]:
        """All of them."""
        return self.artifact.recipe.options

    @cached_property
    def recipe(self) -> PretrainRecipe:
        return PretrainRecipe.of(self.artifact)

    @cached_property
    def record(self) -> PretrainRecord:
        return PretrainRecord.of(self.artifact)

    @property
    def length(self) -> TrainingLength:
        return self.recipe.training.length

    @property
    def tokens(self) -> str:
        """Digest of the token store that it learned."""
        return self.recipe.inputs.tokens

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        return read_history(self.artifact.path)

    def curve(self, quantity: str) -> Curve:
        """Return the curve of `token_loss`, `val_token_loss`, `token_accuracy`, ... over epochs."""
        points = [entry for entry in self.history if quantity in entry]
        return Curve([entry["epoch"] for entry in points], [entry[quantity] for entry in points])


def find_pretrainings(
    artifacts: Iterable[Artifact], tokenizers: Mapping[str, str] | None = None
) -> tuple[Pretraining, ...]:
    """Return the pre-trainings among `artifacts`, each once: in the order of `OBJECTIVES`, then by what their labels
    say.

    `tokenizers`: the names of those whose tokens they learned, by the digest of the tokens.
    """
    names = tokenizers or {}
    unique = {artifact.fingerprint: artifact for artifact in artifacts if artifact.stage == PRETRAIN}
    ordered = sorted(unique.values(), key=lambda artifact: _place(artifact, names))
    groups: dict[str, list[Artifact]] = {}
    for artifact in ordered:
        groups.setdefault(PretrainRecipe.of(artifact).objective, []).append(artifact)
    return tuple(
        Pretraining(artifact, distinction, variant)
        for group in groups.values()
        for variant, (artifact, distinction) in enumerate(zip(group, _told_apart(group, names), strict=True))
    )


def objective_name(objective: str) -> str:
    """Write an objective as its authors do: "MaPeT" for "mapet"."""
    known = OBJECTIVES.get(objective)
    return known.load().title if known else objective


def _distinctions(artifact: Artifact, tokenizers: Mapping[str, str]) -> list[str]:
    """Return what usually tells pre-trainings with one objective apart."""
    recipe = PretrainRecipe.of(artifact)
    return [
        tokenizers.get(recipe.inputs.tokens, "other tokens"),
        recipe.backbone.name,
        recipe.training.length.words,
        f"seed {recipe.seed}",
    ]


def _told_apart(group: Sequence[Artifact], tokenizers: Mapping[str, str]) -> list[str]:
    """Label pre-trainings with one objective by what tells them apart, and a number where the usual differences do
    not."""
    words = [_distinctions(artifact, tokenizers) for artifact in group]
    telling = [len(set(column)) > 1 for column in zip(*words, strict=True)]
    distinctions = ["".join(f", {word}" for word in compress(one, telling)) for one in words]
    shared, met = Counter(distinctions), Counter[str]()
    for place, distinction in enumerate(distinctions):
        if shared[distinction] > 1:
            met[distinction] += 1
            distinctions[place] = f"{distinction} ({met[distinction]})"
    return distinctions


def _place(artifact: Artifact, tokenizers: Mapping[str, str]) -> tuple[Any, ...]:
    recipe, known = PretrainRecipe.of(artifact), list(OBJECTIVES)
    rank = known.index(recipe.objective) if recipe.objective in known else len(known)
    learned = tokenizers.get(recipe.inputs.tokens, "")
    place = recipe.backbone.name, recipe.training.length.place, recipe.seed
    return rank, recipe.objective, learned, *place, artifact.fingerprint
