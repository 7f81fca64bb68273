"""The stage `store_squares`, and what reads the squares: the same results, and every image decoded once."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.chains.by_name import CHAINS
from pipeline.chains.graph import FlowResult, Node
from pipeline.chains.plan import plan
from pipeline.chains.run import run
from pipeline.chains.spared import spared_words
from pipeline.configuration.config import PretrainConfig
from pipeline.configuration.overrides import apply_overrides
from pipeline.data import decode
from pipeline.data.stored_squares import squares_of_tokens
from pipeline.engine import disk_space
from pipeline.engine.errors import PipelineError
from pipeline.engine.settings import Settings
from pipeline.engine.stage import Made
from pipeline.engine.workspace import StageResult, Workspace
from pipeline.stages.store_squares import StoreSquares
from pipeline.training.history import read_history
from storage.square_store import SquareStore
from tests.builds import make_photos
from tests.pipeline.test_shards_in_processes import Here
from tests.trainings import SMALL

IMAGES = 26
# Squares of another size and decoding than those that became tokens, and the very same ones.
OTHER = ("backbone.patch_size=8", "backbone.image_size=32")
SAME = ("pretrain.decoding=exact",)


@dataclass
class Decodings:
    """Counts the images that are decoded in this process, by stage."""

    seen: int = 0

    def __post_init__(self) -> None:
        self.by_stage: Counter[str] = Counter()

    def make_node(self, node: Node, make: Callable[[], StageResult]) -> StageResult:
        before, result = self.seen, make()
        self.by_stage[node.kind] += self.seen - before
        return result


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> Decodings:
    counted, to_rgb = Decodings(), decode.to_rgb

    def counting(image: Any) -> Any:
        counted.seen += 1
        return to_rgb(image)

    monkeypatch.setattr(decode, "to_rgb", counting)
    return counted


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("squares") / "photos", train=10, val=3)


def configured(photos: Path, *overrides: str) -> PretrainConfig:
    tokens = ("tokenizer=pixels", "pixels.image_size=64", "pixels.patch_size=16", "images.images_per_shard=8")
    small = ("codebook.vocabulary=16", "codebook.iterations=2", "features.sample_fraction=0.5")
    return apply_overrides(PretrainConfig(), [f"images.path={photos}", *tokens, *small, *SMALL, *overrides])


def settings_of(root: Path, *, stored: bool = True) -> Settings:
    return Settings(data_root=root, device="cpu", workers=0, batch_size=4, stored_squares=stored)


def ran(config: PretrainConfig, settings: Settings, decodings: Decodings, **how: Any) -> FlowResult:
    graph = CHAINS["pretrain"].graph(config, settings)
    decodings.by_stage.clear()
    return run(graph, Workspace(settings, **how), decodings.make_node)


def stored_alone(config: PretrainConfig, settings: Settings, made: FlowResult) -> StageResult:
    """Return the squares that the stage decodes by itself, in another data root."""
    graph = CHAINS["pretrain"].graph(config, settings)
    stage = next(node.stage for node in graph.nodes if isinstance(node.stage, StoreSquares))
    index = {stage.images.index: made["index_images"].artifact}
    return Workspace(settings).make(stage, Made(settings, dict(index)))


@pytest.mark.parametrize(("overrides", "how"), [(OTHER, {}), (SAME, {"map_shards": Here()})])
def test_stored_squares_change_no_result_and_spare_every_decoding_but_one(
    overrides: tuple[str, ...], how: dict[str, Any], photos: Path, tmp_path: Path, decodings: Decodings
) -> None:
    config = configured(photos, *overrides)
    plain = ran(config, settings_of(tmp_path / "plain", stored=False), decodings)
    assert decodings.by_stage["pretrain"] == 2 * IMAGES - 2 * 4  # of 20 to train on, 16 fill steps
    stored = ran(config, settings_of(tmp_path / "stored"), decodings, **how)
    assert decodings.by_stage["tokenize_images"] == IMAGES
    assert decodings.by_stage["store_squares"] == decodings.by_stage["pretrain"] == 0
    for stage in ("tokenize_images", "pretrain"):
        kept, decoded = stored[stage].artifact, plain[stage].artifact
        assert (kept.fingerprint, kept.digest) == (decoded.fingerprint, decoded.digest)
    curves = [[entry.get("loss") for entry in read_history(made["pretrain"].artifact.path)] for made in (plain, stored)]
    assert curves[0] == curves[1]
    alone = stored_alone(config, settings_of(tmp_path / "alone"), plain)
    assert alone.artifact.digest == stored["store_squares"].artifact.digest
    assert "store_squares" not in [one.stage for one in plain.results]
    _says_what_is_spared(apply_overrides(config, ["pretrain.seed=1"]), tmp_path)


def _says_what_is_spared(config: PretrainConfig, folder: Path) -> None:
    for root, words in (
        ("stored", "(how long one takes has not been measured here yet)"),
        ("alone", " of CPU; it takes "),
    ):
        settings = settings_of(folder / root)
        said = spared_words("pretrain", config, plan("pretrain", config, settings), settings)
        assert said.startswith("settings.stored_squares spares pre-training 32 decodings")
        assert words in said


@dataclass(frozen=True)
class OneShard:
    """A `MapShards` whose processes fail after the first shard."""

    def __call__(self, work: Any, shards: Sequence[Any]) -> Iterator[Any]:
        yield work(shards[:1])
        raise PipelineError("enough")


def test_squares_of_a_pass_that_failed_are_kept_with_its_tokens(
    photos: Path, tmp_path: Path, decodings: Decodings
) -> None:
    settings = settings_of(tmp_path)
    config = configured(photos, *OTHER)
    ran(config, settings_of(tmp_path, stored=False), decodings)
    shutil.rmtree(tmp_path / "tokenize_images")
    with pytest.raises(PipelineError, match="enough"):
        ran(config, settings, decodings, map_shards=OneShard())
    stored = ran(config, settings, decodings)
    assert decodings.by_stage["tokenize_images"] == IMAGES - 8
    assert decodings.by_stage["store_squares"] == 0
    store = SquareStore.open(stored["store_squares"].artifact.path)
    found = np.empty((IMAGES, 3, 32, 32), np.uint8)
    store.read(np.arange(IMAGES), found)
    assert all(square.any() for square in found)
    _are_decoded_where_squares_do_not_fit(stored, tmp_path / "copy")


def _are_decoded_where_squares_do_not_fit(stored: FlowResult, copy: Path) -> None:
    squares, tokens, images = (stored[one].artifact for one in ("store_squares", "tokenize_images", "index_images"))
    assert squares_of_tokens(squares, tokens, images) is squares
    shutil.copytree(squares.path, copy)
    status = np.load(copy / "status.npy")
    status[3] = 5
    np.save(copy / "status.npy", status)
    assert squares_of_tokens(replace(squares, path=copy), tokens, images) is None


def test_too_little_disk_for_squares_is_said_before_anything_is_made(
    photos: Path, tmp_path: Path, decodings: Decodings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_space, "free_bytes", lambda _: 50_000)
    words = r"keeping the squares of 26 images at 32 pixels \(settings.stored_squares\) needs 87.9 kB of disk, 50.0 kB"
    with pytest.raises(PipelineError, match=words):
        ran(configured(photos, *OTHER), settings_of(tmp_path), decodings)
    assert not (tmp_path / "extract_features").exists()
