"""What hands shards of a stage to other processes, whatever these are: those of this machine's GPUs, or of a cluster.

They are told which shards, and write them where the stage itself would: into the folder of the unfinished artifact, on
a file system that all of them share. So what one process and a hundred make is the same, byte for byte, and a process
that is killed costs the shard that it was writing.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

# A group costs a tenth of a second and the start of its decoding processes, so not every shard is one; with one per
# worker all would wait for the slowest.
_GROUPS_PER_WORKER = 4
_MOST_GROUPS = 400

Shard = TypeVar("Shard")
Done = TypeVar("Done")


class MapShards(Protocol):
    """Hands shards to other processes to be worked on."""

    def __call__(self, work: Callable[[Sequence[Shard]], Done], shards: Sequence[Shard]) -> Iterator[Done]:
        """Call `work`, which can be pickled, with groups that make up `shards`; yield what it returned, in any order.

        Raises what `work` raises, and then begins no other group.
        """


def in_groups(shards: Sequence[Shard], *, workers: int) -> list[Sequence[Shard]]:
    """Split shards into a few groups for each worker; neighbours stay together, as they share files of the data set."""
    size = math.ceil(len(shards) / min(_GROUPS_PER_WORKER * workers, _MOST_GROUPS))
    return [shards[first : first + size] for first in range(0, len(shards), size)]
