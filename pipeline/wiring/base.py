"""What every chain of stages has: calls of stages, and the results of a run."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.data.sources.base import ImageSourceOptions
from pipeline.errors import USER_ERRORS, PipelineError
from pipeline.stops import raise_if_stopped
from pipeline.workspace import StageResult, Workspace, numbers
from storage.artifact import Artifact

logger = logging.getLogger("mapet.stages")
Stage = Callable[..., StageResult]
SCRATCH = "scratch"  # of a backbone that was not pre-trained


@dataclass(frozen=True)
class StageCall:
    """A stage with everything it is given. `variant` tells calls of one stage in one run apart."""

    stage: Stage
    arguments: tuple[Any, ...]
    inputs: Mapping[str, Any]
    variant: str = ""

    @property
    def name(self) -> str:
        return f"{self.stage.__name__}-{self.variant}" if self.variant else self.stage.__name__

    def run(self) -> StageResult:
        return self.stage(*self.arguments, **self.inputs)


RunStage = Callable[[StageCall], StageResult]


@dataclass(frozen=True)
class ExpectedCall:
    """A call that a run will make.

    Attributes:
        config: of the part of the run that it belongs to: of its tokenizer, its cell.
        protocol: of an evaluation.
        source: of images that are not those of `config`.
    """

    name: str
    config: Any
    protocol: str = ""
    source: ImageSourceOptions | None = None

    @property
    def stage(self) -> str:
        return self.name.partition("-")[0]

    @property
    def section(self) -> str:
        """Whose options an evaluation has: its protocol's, but for fine-tuning from scratch."""
        is_scratch = self.name.startswith(f"{self.stage}-fine_tune-{SCRATCH}")
        return SCRATCH if is_scratch else self.protocol


class NotRun(Exception):
    """Raised by a `run_stage` that only looks, for a call that would have to run. No failure."""


def run_directly(call: StageCall) -> StageResult:
    return call.run()


@dataclass(frozen=True)
class Failure:
    """A part of a run that came to nothing, and why."""

    part: str
    reason: str


@dataclass(frozen=True)
class FlowResult:
    """What a run produced, call by call, and what it could not."""

    results: tuple[StageResult, ...]
    failures: tuple[Failure, ...] = ()

    def __getitem__(self, stage: str) -> StageResult:
        """The first result of a stage."""
        return next(result for result in self.results if result.stage == stage)

    @property
    def all_cached(self) -> bool:
        return not self.failures and all(result.cached for result in self.results)


@dataclass
class Chain:
    """Calls one stage after the other and keeps what they made."""

    workspace: Workspace
    run_stage: RunStage = run_directly
    results: list[StageResult] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    _calls: list[StageCall] = field(default_factory=list)

    def __call__(self, stage: Stage, *arguments: Any, variant: str = "", **inputs: Any) -> Artifact:
        """The artifact; a stage that was already given the same is not called again."""
        raise_if_stopped()
        call = StageCall(stage, arguments, {**inputs, "workspace": self.workspace}, variant)
        if (same := self._same(call)) is not None:
            return same.artifact
        result = self.run_stage(call)
        # On the parent run too: MLflow's table of runs then compares them without opening one.
        self.workspace.run.metrics(
            {f"{call.name}/{name}": value for name, value in numbers(result.artifact.summary).items()}
        )
        if call.variant and result.label == result.stage:  # nothing else would tell it from its twin
            result = replace(result, label=f"{result.stage} {call.variant}")
        self._calls.append(call)
        self.results.append(result)
        return result.artifact

    def _same(self, call: StageCall) -> StageResult | None:
        for made, result in zip(self._calls, self.results, strict=True):
            if (made.stage, made.arguments, made.inputs) == (call.stage, call.arguments, call.inputs):
                return result
        return None

    @contextmanager
    def attempt(self, part: str) -> Iterator[None]:
        """A part without which the rest of the run goes on; what it raises is kept for the end."""
        try:
            yield
        except NotRun:
            pass
        except Exception as error:
            if not isinstance(error, (*USER_ERRORS, OSError)):  # a full disk or a lost file needs no traceback either
                logger.exception("%s failed", part)
            self.failures.append(Failure(part, str(error) or type(error).__name__))
            logger.error("%s failed, the rest goes on: %s", part, self.failures[-1].reason)

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        return tuple(result.artifact for result in self.results)

    def finished(self) -> FlowResult:
        """Raises PipelineError when everything that was tried failed."""
        if self.failures and not self.results:
            raise PipelineError(self.failures[0].reason)
        return FlowResult(tuple(self.results), tuple(self.failures))
