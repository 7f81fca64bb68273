"""Ctrl-C and SIGTERM during training: first a checkpoint, then whatever the signal would have done."""

import signal
import threading
from types import FrameType

from pipeline.engine.stops import SIGNALS


class HeldInterrupts:
    """While entered, remembers SIGINT and SIGTERM instead of letting them break off a step in the middle.

    A second signal is not held: someone is in a hurry. Outside the main thread Python hands signals to nobody else, so
    nothing is held there.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "HeldInterrupts":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._hold) for number in SIGNALS}
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._restore()
        if error is not None:
            # SLURM and terminals signal the workers too: that these are gone is not why the run stops.
            self.deliver()

    def deliver(self) -> None:
        """Let the signal that was held do its work now; nothing happens if there was none."""
        self._restore()
        number, self.received = self.received, None
        if number is not None:
            signal.raise_signal(number)

    def _hold(self, number: int, _: FrameType | None) -> None:
        if self.received is not None:
            self.deliver()
        self.received = signal.Signals(number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}
