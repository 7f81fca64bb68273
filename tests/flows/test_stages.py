"""Tasks of stages: which there are, and which failures they try again after."""

import asyncio
import errno

import pytest
from prefect.states import exception_to_failed_state

from flows.caching import may_heal
from flows.stages import STAGES, TASKS
from pipeline.engine.errors import PipelineError
from storage.errors import ArtifactDamaged


def test_every_stage_has_a_task_with_its_name_and_help() -> None:
    assert [task.name for task in TASKS.values()] == [stage.NAME for stage in STAGES]
    assert all(task.description for task in TASKS.values())


def test_prefect_keeps_no_results_of_stages() -> None:
    assert all(task.persist_result is False for task in TASKS.values())


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EIO, "Input/output error"), OSError(errno.ESTALE, "Stale"), TimeoutError(), ConnectionError()],
)
def test_a_hiccup_of_a_file_system_or_network_is_tried_again(error: Exception) -> None:
    assert may_heal(None, None, asyncio.run(exception_to_failed_state(error)))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        FileNotFoundError(errno.ENOENT, "No such file"),
        PermissionError(errno.EACCES, "Permission denied"),
        PipelineError("a mistake"),
        ArtifactDamaged("damaged"),
        ValueError("a bug"),
    ],
)
def test_mistakes_full_disks_and_bugs_are_not_tried_again(error: Exception) -> None:
    assert not may_heal(None, None, asyncio.run(exception_to_failed_state(error)))
