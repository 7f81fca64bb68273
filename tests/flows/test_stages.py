"""Tasks of stages: which there are, and which failures they try again after."""

import asyncio
import errno
from importlib import import_module
from pkgutil import walk_packages

import pytest
from prefect.states import exception_to_failed_state

import pipeline.stages
from flows.caching import should_retry
from flows.stages import TASKS
from pipeline.engine.errors import PipelineError
from pipeline.engine.stage import Stage
from storage.errors import ArtifactDamaged


def test_every_stage_of_a_chain_has_a_task_with_its_help() -> None:
    packages = walk_packages(pipeline.stages.__path__, f"{pipeline.stages.__name__}.")
    kinds = [kind for found in packages for kind in vars(import_module(found.name)).values() if isinstance(kind, type)]
    stages = {kind for kind in kinds if issubclass(kind, Stage) and "NAME" in vars(kind)}
    assert set(TASKS) == stages
    assert len({task.name for task in TASKS.values()}) == len(stages)
    assert all(task.description for task in TASKS.values())


def test_prefect_keeps_no_results_of_stages() -> None:
    assert all(task.persist_result is False for task in TASKS.values())


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EIO, "Input/output error"), OSError(errno.ESTALE, "Stale"), TimeoutError(), ConnectionError()],
)
def test_a_hiccup_of_a_file_system_or_network_is_tried_again(error: Exception) -> None:
    assert should_retry(None, None, asyncio.run(exception_to_failed_state(error)))


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
    assert not should_retry(None, None, asyncio.run(exception_to_failed_state(error)))
