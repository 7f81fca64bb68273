"""The stages that load images, where /dev/shm is small: they make what they make everywhere, or end in a sentence."""

import pickle
from pathlib import Path

import pytest

from pipeline.engine.errors import PipelineError
from pipeline.engine.settings import Settings
from pipeline.engine.workspace import Workspace
from pipeline.training.history import read_history
from storage.artifact import Artifact
from tests.builds import build, small_config, tokens_of
from tests.evaluations import small_evaluation
from tests.pipeline.segmentations import COUNTS, DRAWING, run, small_options
from tests.pipeline.small_shared_memory import TOO_LITTLE, needs_mount, with_shared_memory
from tests.stages import TokenizedImages, make_demo_segmentation
from tests.trainings import small_pretraining

DEFAULT = -1  # workers
STAGES = ("encoding", "pretraining", "fine_tuning", "segmentation")


def results(built: TokenizedImages, pairs: Artifact, folder: Path, *, workers: int) -> dict[str, str]:
    """Return what each stage that loads images makes, of steps that are too large for the smallest /dev/shm."""
    step = ("training.epochs=1", "training.batch_size=48", "training.warmup_epochs=0")
    config = small_config(Path(built.source.path), folder / "clip", "images.images_per_shard=100")
    tokens = tokens_of(build(config, folder / "build", workers=workers, batch_size=64))
    trained = small_pretraining(built, folder / "pretrain", *step, workers=workers).artifact
    steps = [f"fine_tune.{each}" for each in step]
    tuned = small_evaluation("fine_tune", built, folder / "fine_tune", *steps, workers=workers).artifact
    options = small_options(pairs.path, steps=2, batch_size=20)
    network = options.network.model_copy(update={"image_size": 64})
    run(options.model_copy(update={"network": network}), pairs, folder / "segmentation", workers=workers)
    curves = (read_history(path) for path in (trained.path, tuned.path, folder / "segmentation"))
    return dict(zip(STAGES, map(str, (tokens.tolist(), *curves)), strict=True))


@pytest.fixture(scope="module")
def given(tokenized: TokenizedImages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The inputs of the stages, and what they make without workers."""
    folder = tmp_path_factory.mktemp("given")
    pairs = make_demo_segmentation(
        COUNTS, drawing=DRAWING, workspace=Workspace(Settings(data_root=folder, device="cpu"))
    ).artifact
    expected = results(tokenized, pairs, folder / "expected", workers=0)
    (folder / "given").write_bytes(pickle.dumps((tokenized, pairs, expected)))
    return folder


def unlike_expected(folder: Path, room: int) -> list[str]:
    """Return the stages that make something else with workers."""
    tokenized, pairs, expected = pickle.loads((folder / "given").read_bytes())
    found = results(tokenized, pairs, folder / f"room{room}", workers=DEFAULT)
    return [stage for stage in STAGES if found[stage] != expected[stage]]


@needs_mount
@pytest.mark.parametrize("room", [1, 12, 200])
def test_every_stage_ends_right_however_little_shared_memory_there_is(room: int, given: Path) -> None:
    assert with_shared_memory(room, unlike_expected, given, room) == []


def segmentation_of_large_squares(folder: Path) -> str:
    _, pairs, _ = pickle.loads((folder / "given").read_bytes())
    options = small_options(pairs.path)
    network = options.network.model_copy(update={"image_size": 512})
    try:
        run(options.model_copy(update={"network": network}), pairs, folder / "large", workers=DEFAULT)
    except PipelineError as error:
        return str(error)
    return "ended"


@needs_mount
def test_a_stage_whose_images_do_not_fit_ends_in_one_sentence(given: Path) -> None:
    assert with_shared_memory(1, segmentation_of_large_squares, given).startswith(TOO_LITTLE)
