"""What every chain of stages has: calls of stages, and the results of a run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.workspace import StageResult, Workspace, numbers
from storage.artifact import Artifact

Stage = Callable[..., StageResult]


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


def run_directly(call: StageCall) -> StageResult:
    return call.run()


@dataclass(frozen=True)
class FlowResult:
    """What a run produced, call by call."""

    results: tuple[StageResult, ...]

    def __getitem__(self, stage: str) -> StageResult:
        """The first result of a stage."""
        return next(result for result in self.results if result.stage == stage)

    @property
    def all_cached(self) -> bool:
        return all(result.cached for result in self.results)


@dataclass
class Chain:
    """Calls one stage after the other and keeps what they made."""

    workspace: Workspace
    run_stage: RunStage = run_directly
    results: list[StageResult] = field(default_factory=list)

    def __call__(self, stage: Stage, *arguments: Any, variant: str = "", **inputs: Any) -> Artifact:
        call = StageCall(stage, arguments, {**inputs, "workspace": self.workspace}, variant)
        result = self.run_stage(call)
        # On the parent run too: MLflow's table of runs then compares them without opening one.
        self.workspace.run.metrics(
            {f"{call.name}/{name}": value for name, value in numbers(result.artifact.summary).items()}
        )
        self.results.append(result)
        return result.artifact

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        return tuple(result.artifact for result in self.results)

    def finished(self) -> FlowResult:
        return FlowResult(tuple(self.results))
