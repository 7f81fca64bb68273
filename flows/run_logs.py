"""The pipeline's log lines in Prefect's run logs. The pipeline logs by the standard library and knows no Prefect."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.logging.handlers import APILogHandler

from pipeline.console import LOGGERS


@contextmanager
def pipeline_logs_in_prefect() -> Iterator[None]:
    """Send the pipeline's log lines from INFO upwards to the run's logs, and leave the loggers as they were.

    Done here and not by PREFECT_LOGGING_EXTRA_LOGGERS: that has to be set wherever a worker is started, and it sets no
    level, so Python's default would drop everything below WARNING.
    """
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
