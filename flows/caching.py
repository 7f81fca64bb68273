"""How Prefect shows a cached stage, and which failures are worth another try.

Stages own their store: whether an artifact is there *and intact* decides a cache hit (`storage.artifact`), not a record
in Prefect's result storage, which returns the path of a deleted folder as readily as that of a good one. So tasks use
no result cache of Prefect; they only tell it what happened.
"""

import errno
from typing import Any

from prefect.client.schemas.objects import State
from prefect.states import Completed

from pipeline.engine.stage_record import BuildNotes
from pipeline.engine.workspace import StageResult

_STAYS = (FileNotFoundError, FileExistsError, PermissionError, NotADirectoryError, IsADirectoryError)
_STAYS_ERRNO = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG})


def state_of(result: StageResult) -> State[StageResult]:
    """Make the final state of a stage's task: `Cached` if the artifact was found, `Completed` if it was built."""
    artifact = result.artifact
    if result.cached:
        return Completed(name="Cached", message=f"found intact: {artifact.path}", data=result)
    return Completed(message=f"built in {BuildNotes.of(artifact).seconds} s: {artifact.path}", data=result)


def should_retry(task: Any, task_run: Any, state: State[Any]) -> bool:
    """Tell whether trying again can help: after a hiccup of disk or network, not a mistake, a full disk or a bug.

    Prefect asks this of a failed task (`retry_condition_fn`); the arguments' names are Prefect's.
    """
    error = state.result(raise_on_failure=False)
    return isinstance(error, OSError) and not isinstance(error, _STAYS) and error.errno not in _STAYS_ERRNO
