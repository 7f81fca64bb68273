"""What becomes of a GPU's memory: given back by who needs it no longer, and one sentence where it does not suffice."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

import pipeline.encoding.features as features
import pipeline.training.loop as loop
from models.clip.options import ClipOptions
from models.objectives.base import ObjectiveOutput
from pipeline.data.decoding_options import DecodingOptions
from pipeline.data.source_options import ImageSourceOptions
from pipeline.encoding.feature_options import FeatureOptions
from pipeline.encoding.networks import encoder_for
from pipeline.engine.errors import PipelineError
from pipeline.engine.processes import Processes
from pipeline.engine.settings import Settings
from pipeline.engine.stage import Made, Stage, recipe_of
from pipeline.engine.tracker import NoTracking, TrackedRun
from pipeline.engine.workspace import Workspace
from pipeline.stages.evaluate.protocol import MemoryFeed
from pipeline.training.launch import train_together
from pipeline.training.loop import Reporter, Trainer
from pipeline.training.options import TrainingOptions
from storage.artifact import Built, Recipe
from tests.builds import make_photos
from tests.null_gpu.gpus import needs_cuda_build, with_gpus
from tests.stages import extract_features, index_images
from tests.tiny_clip import write_tiny_clip

MIB = 1 << 20


def reserved(_: Processes, __: Reporter) -> Mapping[str, int]:
    return {"reserved": torch.cuda.memory_reserved()}


def after_encoding(root: str) -> dict[str, int]:
    """Return MiB that torch holds once photographs were encoded, and when a training starts."""
    features.refuse_non_finite = lambda *_: None
    settings = Settings(data_root=Path(root), device="cuda", workers=0, batch_size=32)
    workspace = Workspace(settings)
    source = ImageSourceOptions(path=str(make_photos(settings.data_root / "photos")))
    images = index_images(source, workspace=workspace).artifact
    clip = ClipOptions(model=write_tiny_clip(settings.data_root / "clip"), precision="fp32", dilate_last_stage=True)
    named: dict[str, Any] = {"images": images, "source": source, "decoding": DecodingOptions()}
    extract_features(FeatureOptions(sample_fraction=0.5), encoder=clip, workspace=workspace, **named)
    parameters = sum(weight.numel() * weight.element_size() for weight in encoder_for(clip, settings).parameters())
    encoded = torch.cuda.memory_reserved()
    training = train_together(reserved, settings, NoTracking(), what="nothing")
    peak = torch.cuda.max_memory_reserved()
    return {"weights": parameters, "peak": peak, "encoded": encoded, "training": training["reserved"]}


@needs_cuda_build
def test_after_encoding_a_gpu_holds_the_network_and_nothing_once_a_training_starts(
    folder: Path, tmp_path: Path
) -> None:
    held, _ = with_gpus(after_encoding, str(tmp_path), gpus=1, folder=folder)
    blocks = 2 * 2 * MIB  # the allocator's smallest, of small and of large tensors
    assert held["peak"] > held["weights"] + 4 * blocks, "or nothing was there to be given back"
    assert held["encoded"] <= held["weights"] + blocks
    assert held["training"] == 0


class Learner(nn.Module):
    """With so many MiB of weights, and of a forward pass in training and in evaluation mode; a `curved` one needs
    as much as its weights twice more for its gradient."""

    def __init__(self, weights: int, *, forward: int = 0, judging: int = 0, curved: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(weights, MIB // 4))
        self.forward_mib, self.judging_mib, self.curved = forward, judging, curved

    def forward(self, pixels: Tensor) -> ObjectiveOutput:
        wanted = self.forward_mib if self.training else self.judging_mib
        held = torch.empty(wanted, MIB, dtype=torch.uint8, device=pixels.device)
        scaled = self.weight * pixels.mean()
        loss = scaled.square().sum() if self.curved else scaled.sum()
        return ObjectiveOutput(loss + held.sum() * 0, {})

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        return [{"params": [self.weight], "weight_decay": weight_decay}]


def trained(root: Path, learner: Learner, **settings: Any) -> None:
    options = TrainingOptions(
        epochs=1, batch_size=4, warmup_epochs=0, precision="fp32", gradient_clip=None, report_steps=1
    )
    reporter = SimpleNamespace(begin=lambda *_, **__: None, metrics=lambda *_: None, advance=lambda *_: None)
    Trainer(
        learner,
        MemoryFeed(lambda rows: (torch.ones(len(rows), 3),), np.arange(4), np.arange(4, 8)),
        options,
        seed=0,
        folder=root,
        settings=Settings(data_root=root, device="cuda", **settings),
        processes=Processes(torch.device("cuda")),
        reporter=reporter,
    ).run()


def said(root: str) -> dict[str, str]:
    """Return what is said of memory that does not suffice, by the place where it does not: half a GiB is there."""
    loop.math = SimpleNamespace(**{**vars(loop.math), "isfinite": lambda _: True})  # the numbers are none
    folder = Path(root)
    clip = ClipOptions(model=write_tiny_clip(folder / "clip"), precision="fp32")
    settings = Settings(data_root=folder, device="cuda")
    places: dict[str, Callable[[], object]] = {
        "moving": lambda: trained(folder, Learner(600)),
        "forward": lambda: trained(folder, Learner(1, forward=600)),
        "one image": lambda: trained(
            folder, Learner(1, forward=600), micro_batch_size=1, gradient_checkpointing=True, head_rows=8
        ),
        "backward": lambda: trained(folder, Learner(140, curved=True)),
        "optimizer": lambda: trained(folder, Learner(140)),
        "validation": lambda: trained(folder, Learner(1, judging=600)),
        "stage": lambda: stage_that_takes(600, folder),
        "encoder": lambda: encoder_on_a_full_gpu(clip, settings),
    }
    sentences = {}
    for place, compute in places.items():
        try:
            compute()
            sentences[place] = "it fits"
        except PipelineError as error:
            sentences[place] = str(error)
        torch.cuda.empty_cache()
    return sentences


@dataclass(frozen=True)
class Judge(Stage):
    """Takes memory."""

    NAME: ClassVar[str] = "judge"

    mib: int

    def recipe(self, made: Made) -> Recipe:
        return recipe_of(self, {})

    def build(self, made: Made, folder: Path, run: TrackedRun) -> Built:
        torch.empty(self.mib, MIB, dtype=torch.uint8, device="cuda")
        return Built({}, {})


def stage_that_takes(mib: int, root: Path) -> None:
    workspace = Workspace(Settings(data_root=root, device="cuda"))
    workspace.make(Judge(mib), workspace.made())


def encoder_on_a_full_gpu(clip: ClipOptions, settings: Settings) -> None:
    free, _ = torch.cuda.mem_get_info()
    held = torch.empty(free - MIB, dtype=torch.uint8, device="cuda")
    encoder_for(clip, settings)
    del held


@needs_cuda_build
def test_wherever_memory_does_not_suffice_one_sentence_says_for_what_and_what_to_set(
    folder: Path, tmp_path: Path
) -> None:
    found, _ = with_gpus(said, str(tmp_path), gpus=1, gib=0.5, folder=folder)
    begins = {
        "moving": "the network to train",
        "forward": "4 images at once",
        "one image": "1 image at once",
        "backward": "4 images at once",
        "optimizer": "the optimizer's two numbers for each weight",
        "validation": "validating 4 images at once",
        "stage": "judge",
        "encoder": "the network that encodes images",
    }
    ends = {
        "moving": "choose a smaller network",
        "forward": "set settings.micro_batch_size to less (the step keeps its batch size), or settings.gradient_",
        "one image": "choose a smaller network",
        "backward": "set settings.micro_batch_size to less",
        "optimizer": "choose a smaller network",
        "validation": "set settings.micro_batch_size to less",
        "stage": "set settings.batch_size, settings.micro_batch_size or settings.workers to less",
        "encoder": "choose a smaller network",
    }
    assert list(found) == list(begins)
    for place, sentence in found.items():
        start = f"the GPU's memory does not suffice for {begins[place]} (tried to allocate "
        assert sentence.startswith(start), (place, sentence)
        assert "GPU 0 has a total capacity of 512.00 MiB of which " in sentence
        assert ends[place] in sentence.partition("is free); ")[2], (place, sentence)
