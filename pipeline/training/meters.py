"""What is measured while training: running means and speed."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.engine.batches import WaitClock


@dataclass
class RunningMeans:
    """Means since the last point of the curves; numbers that are not finite (a skipped fp16 step's gradient) count as
    missing."""

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if math.isfinite(value):
                self.sums[name] = self.sums.get(name, 0.0) + value
                self.counts[name] = self.counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        means = {name: total / self.counts[name] for name, total in self.sums.items()}
        self.sums, self.counts = {}, {}
        return means


class Speed:
    """Images per second and the share of time spent waiting for them, since it was last asked."""

    def __init__(self, clock: WaitClock) -> None:
        self._clock = clock
        self._begin()

    def _begin(self) -> None:
        self._started, self._waited, self._images = time.monotonic(), self._clock.seconds, 0

    def advance(self, images: int) -> None:
        self._images += images

    def note(self) -> str:
        now = self._now()
        return f"{now['images_per_second']:.0f} images/s, data wait {100 * now['data_wait_share']:.0f} %"

    def take(self) -> dict[str, float]:
        now = self._now()
        self._begin()
        return now

    def _now(self) -> dict[str, float]:
        seconds = max(time.monotonic() - self._started, 1e-9)
        waited = self._clock.seconds - self._waited
        return {"images_per_second": self._images / seconds, "data_wait_share": waited / seconds}
