"""Where a run's words go. The pipeline logs by the standard library and knows no Prefect."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prefect.exceptions import FailedRun
from prefect.logging.handlers import APILogHandler

from pipeline.engine.logs import LOGGERS


class _WithoutFailedRuns(logging.Filter):
    """Leaves out the engine's traceback of a run that ended as failed by its own sentence: the state says it."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], FailedRun))


_WITHOUT_FAILED_RUNS = _WithoutFailedRuns()


@contextmanager
def pipeline_logs_in_prefect() -> Iterator[None]:
    """Send the pipeline's log lines from INFO upwards to the run's logs, and leave the loggers as they were.

    Done here and not by PREFECT_LOGGING_EXTRA_LOGGERS: that has to be set wherever a worker is started, and it sets no
    level, so Python's default would drop everything below WARNING.
    """
    for name in ("prefect.flow_runs", "prefect.engine"):
        logging.getLogger(name).addFilter(_WITHOUT_FAILED_RUNS)  # once, however often
    handler = APILogHandler()
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)


def print_to(log: Path) -> None:
    """Append to `log` what this process and its children print, if it would go nowhere.

    Workers do not read what their runs print (`stream_output` of every deployment). If they did, a run would print to a
    pipe that ends with its worker, and die of its next line after the worker was killed.
    """
    with suppress(OSError):  # a full disk is the stages' to tell; a closed output needs no other
        if not os.path.samestat(os.fstat(1), os.stat(os.devnull)):
            return
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            for printed in (1, 2):
                os.dup2(output.fileno(), printed)
