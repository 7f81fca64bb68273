"""What one run knows of its object store: one that is away is said once, and not waited for at every stage."""

import logging
import time
from dataclasses import dataclass, field

from storage.errors import RemoteUnavailable

logger = logging.getLogger("mapet.stages")
SECONDS_BETWEEN_TRIES = 60.0  # a try that fails takes seconds, with some stores minutes, which the work waits for


@dataclass(eq=False)
class RemoteAnswers:
    """What one run has heard from the store; `ever`: whether it has answered at all."""

    ever: bool = field(default=False, init=False)
    _away: bool = field(default=False, init=False)
    _next_try: float = field(default=0.0, init=False)

    @property
    def worth_a_try(self) -> bool:
        """Whether an upload should be tried, which a later one or a later run can make up for."""
        return time.monotonic() >= self._next_try

    def came(self) -> None:
        if self._away:
            logger.warning("the object store is back; what it has missed is uploaded by the next run")
        self.ever, self._away, self._next_try = True, False, 0.0

    def failed(self, error: RemoteUnavailable) -> None:
        """Warn that the store is away, but only once until it answers again."""
        if not self._away:
            logger.warning("%s. The run goes on with this disk alone; a later one uploads what is missing there", error)
        self._away, self._next_try = True, time.monotonic() + SECONDS_BETWEEN_TRIES
