"""What a report tells of, sorted out."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from pipeline.engine.errors import PipelineError
from pipeline.stages.recipe_views import EvaluateRecipe
from pipeline.stages.report.build_content import BuildContent
from pipeline.stages.report.departures import Standard
from pipeline.stages.report.evaluations import find_evaluations
from pipeline.stages.report.pretrainings import Pretraining, find_pretrainings
from pipeline.stages.report.tokenizer_builds import (
    TOKEN_STAGES,
    TOKENS,
    TokenizerBuild,
    find_tokenizer_builds,
)
from storage.artifact import Artifact


@dataclass(frozen=True)
class ReportSubject:
    """Artifacts that a page tells of, sorted out."""

    content: BuildContent
    artifacts: tuple[Artifact, ...]
    compared: tuple[Artifact, ...]
    title: str
    standard: Standard

    @cached_property
    def others(self) -> tuple[Artifact, ...]:
        """What further tokens were made from, and these."""
        there = {artifact.fingerprint for artifact in self.artifacts}
        found = {one.fingerprint: one for one in self.compared if one.stage in TOKEN_STAGES}
        return tuple(artifact for fingerprint, artifact in found.items() if fingerprint not in there)

    @cached_property
    def builds(self) -> tuple[TokenizerBuild, ...]:
        """The tokenizers, that of the build first."""
        found = find_tokenizer_builds([*self.artifacts, *self.others])
        return tuple(sorted(found, key=lambda one: one.tokens.digest != self.content.stages[TOKENS].digest))

    @cached_property
    def pretrainings(self) -> tuple[Pretraining, ...]:
        return find_pretrainings(self.compared, {build.tokens.digest: build.name for build in self.builds})

    @cached_property
    def evaluations(self) -> Mapping[str, Artifact]:
        return find_evaluations(self.compared)

    @property
    def all_stages(self) -> dict[str, Artifact]:
        """By stage, the build's first."""
        return {**{other.stage: other for other in self.others}, **self.content.stages}


def require_tokens(inputs: ReportSubject) -> None:
    """Raises PipelineError for a pre-training or evaluation of tokens that were not given."""
    used = [(one.artifact, "learned", one.tokens) for one in inputs.pretrainings]
    judged = [(made, EvaluateRecipe.of(made).tokens) for made in inputs.evaluations.values()]
    used += [(made, "judged", tokens) for made, tokens in judged if tokens]
    there = {build.tokens.digest: build.tokens.path for build in inputs.builds}
    for made, verb, tokens in used:
        if tokens not in there:
            known = ", ".join(f"{digest[:12]} ({path})" for digest, path in there.items())
            raise PipelineError(
                f"report: {made.path} {verb} the tokens {tokens[:12]}, given are {known}; report it with the build "
                "that it belongs to"
            )
