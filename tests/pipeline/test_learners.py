"""Every learner of the project in the trainer: a step is the same however it is cut into pieces and processes."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.encoders.options import RawPatchOptions
from models.encoders.raw_patches import RawPatchEncoder
from models.heads.linear import LinearHeads
from models.heads.segmenter import UperNetSegmenter
from models.heads.segmenter_options import SegmenterOptions
from models.heads.token_classifier import TokenMLP, TokenViT
from models.objectives import OBJECTIVES, build_objective
from models.vit.backbones import build_backbone
from models.vit.classifier import build_classifier
from models.vit.options import BackboneOptions
from models.vqkd.learner import VQKDLearner
from models.vqkd.options import VQKDCodebookOptions, VQKDNetworkOptions
from pipeline.data.labelled_images import seeded
from pipeline.engine.processes import Processes
from pipeline.engine.settings import Settings
from pipeline.engine.tracker import NoTracking
from pipeline.stages.evaluate.evaluation_options import FineTuneOptions
from pipeline.stages.evaluate.fine_tune import FineTuning
from pipeline.stages.evaluate.frozen_features import HeadTraining
from pipeline.stages.evaluate.linear_probe import LinearProbing
from pipeline.stages.evaluate.protocol import MemoryFeed
from pipeline.stages.evaluate.segmentation import Segmentation
from pipeline.stages.evaluate.tokens_as_input import TokenClassification
from pipeline.training.history import read_history
from pipeline.training.launch import train_together
from pipeline.training.loop import Reporter, Trainer
from pipeline.training.options import TrainingOptions
from pipeline.training.reporting import TrackingReporter
from pipeline.training.token_prediction import TokenPrediction, pretraining_square
from tests.forked import call

BACKBONE = BackboneOptions(name="vit_demo", image_size=64, drop_path_rate=0.5)
IMAGES, CLASSES, VOCABULARY, PATCHES = 5, 4, 32, 16
OBJECTIVE_OPTIONS = {
    "mim": {"masked": 6},
    "pim": {"cutting_point": 5},
    "mapet": {"cutting_point": 5},
    "beit": {"masked": 6, "min_block": 2},
    "cae": {"masked": 8, "min_block": 2},
}
Learner = tuple[nn.Module, tuple[Tensor, ...]]  # and its inputs


def draw() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def pixels() -> Tensor:
    return torch.randint(0, 256, (IMAGES, 3, 64, 64), dtype=torch.uint8, generator=draw())


def labels() -> Tensor:
    return torch.randint(CLASSES, (IMAGES,), generator=draw())


def tokens() -> Tensor:
    return torch.randint(VOCABULARY, (IMAGES, PATCHES), generator=draw())


SEEDS = torch.arange(IMAGES) + 7


def token_prediction(objective: str) -> Learner:
    options = OBJECTIVES[objective].options_class.model_validate(OBJECTIVE_OPTIONS[objective])
    network = build_objective(objective, build_backbone(BACKBONE, seed=1), VOCABULARY, options, seed=1)
    return TokenPrediction(network, pretraining_square(64), jitter=0.4), (pixels(), tokens().int(), SEEDS)


def fine_tuning(*, mixed: bool) -> Learner:
    model = build_classifier(BACKBONE, CLASSES, weights=None, seed=1)
    shares = torch.rand(IMAGES, CLASSES, dtype=torch.float64, generator=draw()).softmax(1)
    return FineTuning(model, FineTuneOptions()).double(), (pixels(), shares if mixed else labels(), SEEDS)


def linear_heads(blocks: tuple[int, ...]) -> LinearHeads:
    return LinearHeads(64, CLASSES, blocks=blocks, learning_rates=(1e-3, 1e-2), given_rate=1e-3, seed=1)


def linear_probe() -> Learner:
    learner = LinearProbing(build_backbone(BACKBONE, seed=1), linear_heads((1, 3)))
    return learner.double(), (pixels(), labels(), SEEDS)


def frozen_heads() -> Learner:
    features = torch.randn(IMAGES, 2, 64, dtype=torch.float64, generator=draw())
    return HeadTraining(linear_heads((3,))).double(), (features, labels())


def token_classifier(name: str) -> Learner:
    with seeded(1):
        network = {
            "mlp": lambda: TokenMLP(VOCABULARY, CLASSES, width=24),
            "vit": lambda: TokenViT(VOCABULARY, CLASSES, patches=PATCHES, width=24, depth=2, heads=2),
        }[name]()
    return TokenClassification(network).double(), (tokens(), labels())


def segmentation() -> Learner:
    """BatchNorm is over what is computed at once: here it stays as it is."""
    options = SegmenterOptions(image_size=64, blocks=(0, 1, 2, 3), channels=16, auxiliary_channels=16)
    network = UperNetSegmenter(build_backbone(BACKBONE, seed=1), CLASSES, options, seed=1)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()
            part.train = lambda mode=True, part=part: part  # type: ignore[method-assign]
    maps = torch.randint(CLASSES, (IMAGES, 64, 64), generator=draw())
    for image in range(IMAGES):
        maps[image, : 15 * image] = 255  # images with less and less that has a class
    sizes = torch.tensor([(64, 64), (64, 40), (30, 64), (64, 64), (10, 20)])
    return Segmentation(network, layer_decay=0.75).double(), (pixels(), maps.to(torch.uint8), SEEDS, sizes)


def vqkd() -> Learner:
    teacher = RawPatchEncoder(RawPatchOptions(image_size=64, patch_size=16))
    options = VQKDNetworkOptions(image_size=64, width=64, depth=1, decoder_depth=1, vocabulary=VOCABULARY, code_width=8)
    return VQKDLearner(options, VQKDCodebookOptions(), teacher, seed=1), (pixels(), SEEDS)


LEARNERS: Mapping[str, Callable[[], Learner]] = {
    **{name: partial(token_prediction, name) for name in OBJECTIVES},
    "fine_tune": partial(fine_tuning, mixed=False),
    "fine_tune, mixed": partial(fine_tuning, mixed=True),
    "linear_probe": linear_probe,
    "frozen_features": frozen_heads,
    "tokens_as_input": partial(token_classifier, "mlp"),
    "tokens_as_input_vit": partial(token_classifier, "vit"),
    "segmentation": segmentation,
    "fit_vqkd": vqkd,
}


def one_step(name: str, folder: Path, processes: Processes, reporter: Reporter, *, at_once: int = 0) -> dict[str, Any]:
    """The loss of one step, its gradient of every parameter, and what else the step has moved."""
    learner, inputs = LEARNERS[name]()
    feed = MemoryFeed(lambda rows: tuple(each[rows] for each in inputs), np.arange(IMAGES), np.arange(0))
    training = TrainingOptions(
        epochs=1, batch_size=IMAGES, warmup_epochs=0, precision="fp32", gradient_clip=None, report_steps=1
    )
    folder.mkdir(parents=True, exist_ok=True)
    machine = Settings(data_root=folder, device="cpu", workers=0, micro_batch_size=at_once)
    parts = {"folder": folder, "settings": machine, "processes": processes, "reporter": reporter}
    Trainer(learner, feed, training, seed=3, **parts).run()  # type: ignore[arg-type]
    gradients = {name: weight.grad for name, weight in learner.named_parameters() if weight.grad is not None}
    loss = next(entry["loss"] for entry in read_history(folder) if "loss" in entry) if processes.is_first else None
    return {"loss": loss, **gradients, **{f"buffer {name}": buffer for name, buffer in learner.named_buffers()}}


def all_steps(folder: Path, processes: Processes, reporter: Reporter) -> dict[str, Any]:
    for name in LEARNERS:
        found = one_step(name, folder / name, processes, reporter)
        if processes.is_first:
            torch.save(found, folder / f"{name}.pt")
    processes.wait_for_all()
    return {}


def alone(name: str, folder: Path, *, at_once: int = 0) -> dict[str, Any]:
    work = partial(one_step, name, folder, at_once=at_once)
    return train_together(work, Settings(data_root=folder, device="cpu", workers=0), NoTracking(), what="a step")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The step of every learner, three images in one process and two in another."""
    folder = tmp_path_factory.mktemp("shared")
    machine = Settings(data_root=folder, device="cpu", workers=0, processes=2)
    call(folder / "said", train_together, partial(all_steps, folder), machine, NoTracking(), what="steps")
    return folder


@pytest.mark.parametrize("name", LEARNERS)
def test_no_loss_or_gradient_depends_on_how_a_step_is_cut(name: str, shared: Path, tmp_path: Path) -> None:
    whole = alone(name, tmp_path / "whole")
    gradients = [value for key, value in whole.items() if isinstance(value, Tensor) and not key.startswith("buffer")]
    assert any(gradient.any() for gradient in gradients)
    tolerance = 1e-12 if all(gradient.dtype == torch.float64 for gradient in gradients) else 1e-5
    for cut in (alone(name, tmp_path / "pieces", at_once=2), torch.load(shared / f"{name}.pt", weights_only=True)):
        assert cut.keys() == whole.keys()
        assert cut.pop("loss") == pytest.approx(whole["loss"], rel=1e-6)
        for key, value in cut.items():
            expected = whole[key].double()
            # A true gradient of nothing, as of biases that shift all keys alike, is found as rounding.
            assert (value.double() - expected).norm() <= tolerance * expected.norm().clamp(min=0.01), key


@pytest.mark.parametrize(("precision", "expected"), [("fp32", "ieee"), ("bf16", "none")])
def test_a_training_in_float32_rounds_no_convolution_to_tf32(precision: Any, expected: str, tmp_path: Path) -> None:
    """cuDNN would, unless told otherwise: forward, and in the gradients."""
    learner, inputs = LEARNERS["linear_probe"]()
    feed = MemoryFeed(lambda rows: tuple(each[rows] for each in inputs), np.arange(IMAGES), np.arange(0))
    training = TrainingOptions(epochs=1, batch_size=IMAGES, warmup_epochs=0, precision=precision)
    seen: list[str] = []
    before = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    torch.backends.cudnn.conv.fp32_precision = "none"  # type: ignore[attr-defined]

    def look(*_: object) -> None:
        seen.append(torch.backends.cudnn.conv.fp32_precision)  # type: ignore[attr-defined]

    learner.register_forward_pre_hook(look)
    next(weight for weight in learner.parameters() if weight.requires_grad).register_hook(look)
    machine = Settings(data_root=tmp_path, device="cpu", workers=0)
    with TrackingReporter(NoTracking(), "a test") as reporter:
        parts = {"folder": tmp_path, "settings": machine, "processes": Processes(torch.device("cpu"))}
        Trainer(learner.float(), feed, training, seed=3, reporter=reporter, **parts).run()  # type: ignore[arg-type]
    torch.backends.cudnn.conv.fp32_precision = before  # type: ignore[attr-defined]
    assert set(seen) == {expected}
    assert len(seen) == 2
