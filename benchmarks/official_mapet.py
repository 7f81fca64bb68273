"""The training step of the official MaPeT code, run from a checkout of it by today's torch and timm.

Nothing of that code is here: its files are imported by path, and its own functions make the masks of every image
(`SequenceDataset.get_permutation`), collate them (the default of its loader) and take the step (`train_one_epoch`).
The code was written for torch 1.13 and timm 0.6.11; what has moved since is found again under its old name while the
files are imported. Its package `models` never takes the place of ours.

https://github.com/aimagelab/MaPeT, arXiv:2306.07346.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import timm.layers
import timm.models
import torch
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.data import default_collate

from models.objectives.mapet import MaPeT
from models.vit.trunk import drop_path_rates

VOCABULARY = 8192  # written into the official loop
CLIP_GRAD = 3.0


@dataclass(frozen=True)
class OfficialCode:
    """The modules of a checkout that its training step needs."""

    model: ModuleType
    data: ModuleType
    engine: ModuleType

    @classmethod
    def load(cls, checkout: Path) -> "OfficialCode":
        """Load what a step needs of a checkout.

        Raises:
            FileNotFoundError: the folder is no checkout of the official code.
        """
        with _known_as(_timm_of_then()):
            model = _load(checkout / "models/mapet/mapet.py")
        with _known_as({"utils.models": _load(checkout / "utils/models.py")}):
            data = _load(checkout / "data/clipped_imagenet.py")
        with _known_as({"data.clipped_imagenet": data}):
            return cls(model, data, _load(checkout / "engine.py"))


class OfficialStep:
    """One step of the official loop, with the weights, images and tokens of one of our MaPeT steps.

    Args:
        objective: gives shape and weights; its backbone is one of ViT-T, S, B at 224 pixels.
        images: [B, 3, 224, 224].
        tokens: [B, 196].
        autocast: entered around forward and loss.
        keep_masks: True draws the masks once, as if its loader's workers cost nothing; False draws them in every step.
    """

    def __init__(
        self,
        code: OfficialCode,
        objective: MaPeT,
        images: Tensor,
        tokens: Tensor,
        *,
        autocast: Callable[[], AbstractContextManager[Any]],
        keep_masks: bool = False,
    ) -> None:
        self.code, self.images, self.tokens, self.autocast = code, images, tokens.cpu(), autocast
        backbone = objective.backbone
        last = cast(Block, backbone.blocks[-1])
        self.heads = cast(Attention, last.attn).num_heads
        self.rows = 1 + objective.patches
        self.least_number = self.rows - objective.predicted
        self.model: nn.Module = code.model.XLeiTPositionalAugmented(
            embed_dim=backbone.embed_dim,
            depth=len(backbone.blocks),
            num_heads=self.heads,
            ntoken=objective.vocabulary,
            init_values=1.0,  # loaded below
            drop_path_rate=drop_path_rates(backbone)[-1][0],
            least_number=self.least_number,
        )
        self.model.load_state_dict(official_weights(objective), strict=True)
        self.model.to(images.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, weight_decay=0.05)
        self.kept = self.batch() if keep_masks else None

    def __call__(self) -> float:
        """Take a step and return its loss."""
        return self._run()

    def loss(self) -> float:
        """Return the loss of the forward pass alone."""
        return self._run(loss_scaler=lambda *_, **__: None)  # the loop leaves backward and update to the scaler

    def _run(self, **extra: object) -> float:
        on_gpu = self.images.is_cuda
        # What its loop reads of the 184 arguments. With a prefetcher it leaves the batch on the device where it is.
        arguments = SimpleNamespace(
            model="mapet",
            prefetcher=not on_gpu,
            clip_grad=CLIP_GRAD,
            clip_mode="norm",
            iters_to_accumulate=1,
            mixup_off_epoch=0,
            channels_last=False,
            distributed=False,
            rank=1,  # rank 0 logs
            log_interval=1,
        )
        inputs = (self.model, [self.kept or self.batch()], self.optimizer, nn.CrossEntropyLoss(), arguments)
        # The loop waits for the GPU after every step, which is an error without one.
        with nullcontext() if on_gpu else patch.object(torch.cuda, "synchronize"):
            return self.code.engine.train_one_epoch(0, *inputs, amp_autocast=self.autocast, **extra)["loss"]

    def batch(self) -> list[Tensor]:
        """Gather a batch: images (collated already), classes (unused), tokens and what its dataset draws for each."""
        dataset = SimpleNamespace(
            sequence_len=self.rows, num_attention_heads=self.heads, least_number=self.least_number
        )
        with threads(1):  # as in the workers of its loader
            drawn = [(tokens, *self.code.data.SequenceDataset.get_permutation(dataset)) for tokens in self.tokens]
            return [self.images, torch.zeros(len(drawn)), *default_collate(drawn)]


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run torch's operations on the CPU on so many threads meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def official_weights(objective: MaPeT) -> dict[str, Tensor]:
    """Give our weights the official names: there q has a linear layer of its own, and the head is a decoder."""
    found: dict[str, Tensor] = {
        "mask_positional_token": objective.mask_token.detach(),
        "decoder.weight": objective.head.weight.detach(),
        "decoder.bias": objective.head.bias.detach(),
    }
    for name, value in objective.backbone.state_dict().items():
        if ".qkv." in name:
            width = len(value) // 3
            found[name.replace("qkv", "q")], found[name.replace("qkv", "kv")] = value.split([width, 2 * width])
        else:
            found[name] = value
    return found


def _timm_of_then() -> dict[str, ModuleType]:
    registry = ModuleType("timm.models.registry")
    vars(registry)["register_model"] = lambda function: function  # its networks are built without the registry
    return {
        "timm.models.helpers": timm.models,
        "timm.models.layers": timm.layers,
        "timm.models.layers.helpers": timm.layers,
        "timm.models.layers.trace_utils": timm.layers,
        "timm.models.registry": registry,
    }


@contextmanager
def _known_as(modules: dict[str, ModuleType]) -> Iterator[None]:
    """Let `import` find these modules under these names meanwhile, and afterwards what it found before."""
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def _load(path: Path) -> ModuleType:
    spec = spec_from_file_location(f"official_mapet_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"{path} is no Python file")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
