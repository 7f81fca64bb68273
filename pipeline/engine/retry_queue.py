"""Messages to a server that may be away for a while: sent in order, kept meanwhile, never in the way of the work."""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

logger = logging.getLogger("mapet.tracker")
SECONDS_BETWEEN_TRIES = 60.0  # a try that fails takes seconds, which the work waits for


class Away(Exception):
    """Raised by a message when its server does not answer; the message is kept."""


class Refused(Exception):
    """Raised by a message that its server does not take; the message is dropped."""


@dataclass(frozen=True)
class Message:
    """`send()` delivers it; `what` and `whose` it is, for whoever reads that it is missing."""

    what: str
    whose: str
    send: Callable[[], None]


class RetryQueue:
    """What a server is told, by one thread. Nothing that is wrong with the server is raised."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._waiting: deque[Message] = deque()
        self._away = False
        self._next_try = 0.0
        self._refused: Counter[str] = Counter()

    def put(self, message: Message) -> None:
        """Send it after all that wait, or let it wait with them."""
        self._waiting.append(message)
        if time.monotonic() >= self._next_try:
            self._send_waiting()

    def close(self) -> None:
        """Try a last time; a warning tells what is lost."""
        self._send_waiting()
        if self._refused.total() > 1:  # the first was said when it was refused
            logger.warning(
                "%s did not take messages of these runs: %s. Results do not depend on it",
                *(self._server, _counted(self._refused)),
            )
        if self._waiting:
            logger.warning(
                "%s did not come back: messages of these runs are missing there: %s. Results do not depend on it",
                *(self._server, _counted(Counter(message.whose for message in self._waiting))),
            )
        self._waiting.clear()

    def _send_waiting(self) -> None:
        while self._waiting:
            message = self._waiting[0]
            try:
                message.send()
            except Away as error:
                if not self._away:
                    logger.warning("%s is away (%s); the run goes on, and tells it later", self._server, error)
                self._away, self._next_try = True, time.monotonic() + SECONDS_BETWEEN_TRIES
                return
            except Refused as error:
                if not self._refused:  # one that takes a run no more takes none of its hundreds of messages
                    logger.warning("%s does not take %s of %s (%s)", self._server, message.what, message.whose, error)
                self._refused[message.whose] += 1
            self._waiting.popleft()
        if self._away:
            logger.warning("%s is back and has been told everything", self._server)
        self._away = False


def _counted(messages: Counter[str]) -> str:
    return ", ".join(f"{whose} ({count})" for whose, count in messages.items())
