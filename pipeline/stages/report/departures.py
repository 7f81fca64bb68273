"""In what a result of ours departs from the paper's: every option that the stages behind it recorded is compared with
what the paper's presets would have recorded (`pipeline.chains.paper_standard`).

Not compared are seeds, what only draws curves or keeps files, and Table 6's cutting point, which has columns of its
own. Of the weights of a CLIP or a DALL-E only a digest is recorded: nobody can tell from it whose they are.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from pipeline.engine.workspace import flatten
from pipeline.stages.recipe_views import EvaluateRecipe
from pipeline.stages.records import PretrainRecord
from pipeline.stages.report.pretrainings import Pretraining
from pipeline.stages.report.tokenizer_builds import CODEBOOK, FEATURES, TOKENS, VQKD, TokenizerBuild
from storage.artifact import Artifact

Standard = Mapping[str, Mapping[str, Any]]
"""What the paper's presets record, by the keys below. Without it nothing of ours compares with the paper's numbers."""

UNKNOWN = "compared with none of the paper's presets"
_DEFINES_NOTHING = ("seed", "report_steps", "validation_epochs", "keep_weights")
_DIGESTS = ("weights",)
_COMPARED = ("options", "backbone", "clip")  # of what an evaluation records; the rest are its images
_SECTIONS = {FEATURES: "features", CODEBOOK: "codebook", TOKENS: "tokens"}


def evaluation_key(protocol: str, backbone: str = "", *, scratch: bool = False) -> str:
    return " ".join(word for word in (protocol, backbone, "scratch" if scratch else "") if word)


def pretraining_key(objective: str, backbone: str) -> str:
    return f"{PretrainRecord.STAGE} {objective} {backbone}"


def tokens_key(kind: str, stage: str) -> str:
    return f"{stage} {kind}"


def departures(
    evaluation: Artifact, pretraining: Pretraining | None, tokens: TokenizerBuild | None, standard: Standard
) -> tuple[str, ...]:
    """Return each difference in words, by the name of the option: `fine_tune.mixup 0.0 instead of 0.8`.

    Args:
        tokens: those that were learned or judged.
    """
    found = _of_evaluation(evaluation, pretraining, standard)
    if pretraining:
        found += _of_pretraining(pretraining, standard)
    if tokens:
        found += _of_tokens(tokens, standard)
    return tuple(dict.fromkeys(found))


def _of_evaluation(evaluation: Artifact, pretraining: Pretraining | None, standard: Standard) -> list[str]:
    recipe, options = EvaluateRecipe.of(evaluation), evaluation.recipe.options
    protocol, backbone = recipe.protocol, recipe.backbone.name if recipe.backbone else ""
    is_scratch = bool(backbone) and pretraining is None
    recorded = {name: options[name] for name in _COMPARED if name in options}
    section = "scratch" if is_scratch and protocol == "fine_tune" else protocol
    key = evaluation_key(protocol, backbone, scratch=is_scratch)
    return _differences(recorded, standard.get(key), partial(_renamed, sections={"options": section}))


def _of_pretraining(pretraining: Pretraining, standard: Standard) -> list[str]:
    objective, backbone = pretraining.objective, pretraining.recipe.backbone.name
    sections = {"objective_options": f"objectives.{objective}", "backbone": "backbone", "training": "training"}
    return _differences(
        pretraining.options,
        standard.get(pretraining_key(objective, backbone)),
        partial(_renamed, sections=sections, otherwise="pretrain."),
        # How long it was is said in words of its own.
        apart=("training.epochs", "objective_options.cutting_point"),
    )


def _of_tokens(tokens: TokenizerBuild, standard: Standard) -> list[str]:
    found = []
    for stage, section in _SECTIONS.items():
        expected = standard.get(tokens_key(tokens.kind, stage))
        if expected is None:  # the stage is none of this tokenizer's
            continue
        if (made := tokens.stages.get(stage)) is None:
            found.append(f"tokens without their {stage}")
            continue
        recorded = {**made.recipe.options, **({"network": tokens.network} if stage == TOKENS else {})}
        found += _differences(recorded, expected, partial(_renamed, sections={}, otherwise=f"{section}."))
    if VQKD in tokens.stages:
        found.append("a VQ-KD trained here instead of the published one")
    return found


def _differences(
    recorded: Mapping[str, Any],
    expected: Mapping[str, Any] | None,
    renamed: Callable[[str], str],
    *,
    apart: tuple[str, ...] = (),
) -> list[str]:
    if expected is None:
        return [UNKNOWN]
    ours, theirs = flatten(dict(recorded)), flatten(dict(expected))
    return [
        f"{renamed(name)} {_shown(ours.get(name))} instead of {_shown(theirs.get(name))}"
        for name in dict.fromkeys((*theirs, *ours))
        if name.rpartition(".")[2] not in (*_DEFINES_NOTHING, *_DIGESTS)
        and name not in apart
        and ours.get(name) != theirs.get(name)
    ]


def _renamed(name: str, sections: Mapping[str, str], *, otherwise: str = "") -> str:
    """Name an option as one would set it: `options.training.epochs` of the protocol `fine_tune` is
    `fine_tune.training.epochs`."""
    first, _, rest = name.partition(".")
    return f"{sections[first]}.{rest}" if rest and first in sections else f"{otherwise}{name}"


def _shown(value: Any) -> str:
    return "none" if value in (None, "") else str(value)
