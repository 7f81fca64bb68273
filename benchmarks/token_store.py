"""Writing, reading and checking ImageNet's tokens with `storage.token_store`, against plain `np.save` and `np.load`.

What the store adds (a checksum per chunk, a check of every id, one whole-or-absent artifact) is what it costs more.
"""

import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.measure import Measurement, Seconds, anonymous_bytes, in_own_process, interleaved, median_ratio, timed
from pipeline.stages.records import TokensRecord
from storage.artifact import Artifact, Built, Recipe, build_artifact, damage
from storage.layout import Layout
from storage.token_store import TokenStore, write_token_store

VOCABULARY = 8192
SHARD = 4096  # images per part, as the stage writes them
BATCH = 256  # rows that a training step looks up


def run(images: int = 1_281_167, patches: int = 196, rounds: int = 3) -> list[Measurement]:
    """Measure the store against `np.save` and `np.load`: medians of the times, and of the rounds' ratios."""
    with tempfile.TemporaryDirectory(prefix="mapet-token-store-") as folder:
        files = _Files(Path(folder), zipf_tokens(images, patches))
        writing = interleaved({"store": files.write, "numpy": files.save}, rounds=rounds)
        publishing = timed(files.publish)
        store, memory = TokenStore(files.artifact.path), files.load_in_own_process()
        works: dict[str, Callable[[], object]] = {
            "load": lambda: TokenStore(files.artifact.path).load(),
            "verify": lambda: damage(files.artifact),
            "np.load": lambda: np.load(files.plain),
        }
        reading = interleaved(works, rounds=rounds)
        first = timed(lambda: store.decoded(files.root / "decoded", files.artifact.digest))
        decoded = store.decoded(files.root / "decoded", files.artifact.digest)
        lookups = interleaved(
            {
                "open": lambda: store.decoded(files.root / "decoded", files.artifact.digest),
                "decoded": lambda: _look_up(decoded),
                "memory": lambda: _look_up(files.tokens),
            },
            rounds=rounds,
        )
        plain, stored = files.plain.stat().st_size, files.artifact.bytes
    return [
        _compared("write", writing["store"], writing["numpy"], "np.save"),
        Measurement("token_store.publish", publishing.wall, "s: write, checksum, sync to the disk, rename"),
        _compared("load", reading["load"], reading["np.load"], "np.load"),
        _compared("verify", reading["verify"], reading["np.load"], "np.load"),
        Measurement("token_store.decode_once", first.wall, "s, once per node"),
        _compared("open_decoded", lookups["open"], reading["np.load"], "np.load"),
        _compared("look_up_decoded", lookups["decoded"], lookups["memory"], "the same rows of an array in memory"),
        Measurement("token_store.size", stored / 1e6, "MB", f"np.save: {plain / 1e6:.1f} MB", stored / plain),
        Measurement("token_store.load_memory", memory / 1e6, "MB, peak", "the tokens themselves", memory / plain),
    ]


def zipf_tokens(images: int, patches: int) -> np.ndarray:
    """Draw uint16 [images, patches]: the r-th most frequent token has probability ~ 1 / (r + 10)."""
    weights = 1 / (np.arange(VOCABULARY) + 10)
    share = np.cumsum(weights) / weights.sum()
    table = np.searchsorted(share, (np.arange(65_536) + 0.5) / 65_536).astype(np.uint16)  # 16-bit inverse distribution
    rng = np.random.default_rng(0)
    tokens = np.empty((images, patches), np.uint16)
    for start in range(0, images, SHARD):
        block = tokens[start : start + SHARD]
        block[:] = table[rng.integers(0, 65_536, block.shape, dtype=np.uint16)]
    return tokens


@dataclass
class _Files:
    """The same tokens as an artifact and as a plain file."""

    root: Path
    tokens: np.ndarray
    _made: Artifact | None = None

    @property
    def plain(self) -> Path:
        return self.root / "plain.npy"

    @property
    def artifact(self) -> Artifact:
        if self._made is None:
            raise RuntimeError("publish first")
        return self._made

    def save(self) -> None:
        np.save(self.plain, self.tokens)

    def write(self) -> None:
        folder = self.root / "written"
        folder.mkdir(exist_ok=True)
        self._write(folder)

    def publish(self) -> None:
        recipe = Recipe(TokensRecord.STAGE, 0, {"benchmark": len(self.tokens)})
        self._made, _ = build_artifact(Layout(self.root / "data"), recipe, self._write)

    def load_in_own_process(self) -> int:
        """Measure the peak anonymous memory of `TokenStore.load`, in bytes."""
        measured = in_own_process(load_tokens, str(self.artifact.path))
        return measured.peak_anonymous - measured.result

    def _write(self, folder: Path) -> Built:
        images, patches = self.tokens.shape
        attributes = {"vocabulary": VOCABULARY}
        write_token_store(folder, self._parts(), images=images, patches=patches, attributes=attributes)
        return Built({}, {})

    def _parts(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for start in range(0, len(self.tokens), SHARD):
            part = self.tokens[start : start + SHARD]
            yield np.arange(start, start + len(part)), part, np.zeros(len(part), np.uint8)


def load_tokens(path: str) -> int:
    """Load all tokens; returns the anonymous memory there was before. Runs in a process of its own."""
    store = TokenStore(Path(path))
    before = anonymous_bytes() if len(store) else 0
    store.load()
    return before


def _look_up(tokens: np.ndarray, batches: int = 200) -> int:
    rng = np.random.default_rng(0)
    return sum(int(tokens[rng.integers(0, len(tokens), BATCH)][0, 0]) for _ in range(batches))


def _compared(name: str, seconds: list[Seconds], others: list[Seconds], against: str) -> Measurement:
    value, other = (statistics.median(each.wall for each in found) for found in (seconds, others))
    cpu = statistics.median(each.cpu for each in seconds)
    ratio = median_ratio([each.wall for each in seconds], [each.wall for each in others])
    return Measurement(f"token_store.{name}", value, f"s ({cpu:.2f} CPU-s)", f"{against}: {other:.3f} s", ratio)
