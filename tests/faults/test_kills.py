"""Every stage killed at random moments: nothing wrong is ever published, and in the end it is the undisturbed run's."""

import random
import signal
from pathlib import Path

from tests.faults.chain import STAGES, Expected
from tests.faults.kills import at_random_moments, in_every_stage, survive


def test_a_chain_killed_in_every_stage_ends_with_the_same_bytes(expected: Expected, tmp_path: Path) -> None:
    ordeal = survive(tmp_path / "data", expected, in_every_stage(random.Random(1)))
    assert ordeal.wrong == []
    assert ordeal.sent.total() == len(STAGES)
    assert len(ordeal.hit.keys() & set(STAGES)) >= 6, f"too few stages were met to prove anything: {ordeal.hit}"


def test_a_chain_killed_stopped_and_interrupted_at_random_ends_with_the_same_bytes(
    expected: Expected, tmp_path: Path
) -> None:
    signals = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
    ordeal = survive(tmp_path / "data", expected, at_random_moments(random.Random(2), 6, signals))
    assert ordeal.wrong == []
    assert ordeal.sent.total() == 6
