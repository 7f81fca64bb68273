"""Log lines of a command or a worker process on stderr."""

import logging

LOGGERS = ("mapet", "models", "pipeline", "storage")


def log_to_stderr() -> None:
    """What the pipeline says, from INFO upwards; other libraries keep to themselves."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    logging.getLogger("mapet.progress").setLevel(logging.WARNING)  # bars in a terminal, silence elsewhere
