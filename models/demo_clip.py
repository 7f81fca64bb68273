"""A CLIP small enough to train in a minute on a CPU, for the demo: ordinary open_clip in every other respect.

The smallest ModifiedResNet that keeps the architecture of RN50x64 (three-convolution stem, four stages, attention pooling)
and a two-layer text transformer learn from captions made of class words, with CLIP's symmetric contrastive loss [1]

    L = (CE(s * I T^t) + CE(s * T I^t)) / 2,    I, T unit rows of image and text features, s the learnt logit scale.

Images of one class in a batch are false negatives of each other; with a low initial scale s = 4 the training bears that,
with CLIP's 1/0.07 it stays at chance for long. The result is saved as the directory that open_clip itself loads.

[1] Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from pydantic import Field
from torch import Tensor, nn

from models.errors import ModelError
from models.options import Options

TEMPLATES = (
    "{}",
    "the digit {}",
    "a handwritten {}",
    "a photo of the number {}",
)
STRIDE = 32  # of a ModifiedResNet, from pixels to its last stage
MAX_LOGIT_SCALE = 100.0  # section 2.5 of [1]
EVALUATION_BATCH = 250  # images; does not change a result

OnStep = Callable[[int, int, float], None]
"""Called after each step with (steps done, steps in all, loss)."""


class DemoClipOptions(Options):
    """Architecture and training of the demo's CLIP. The defaults take about one CPU minute on 5,188 images."""

    image_size: int = Field(default=64, ge=STRIDE, multiple_of=STRIDE)
    """Side of the square training images, in pixels."""
    width: int = Field(default=16, ge=2, multiple_of=2)
    """Channels of the image tower's stem; its last stage has 32 times as many."""
    vision_layers: tuple[int, int, int, int] = (1, 1, 1, 1)
    """Residual blocks in each of the image tower's four stages."""
    embedding_width: int = Field(default=64, ge=1)
    """Width of the space that images and captions share."""
    text_width: int = Field(default=64, ge=1)
    """Width of the text transformer."""
    text_heads: int = Field(default=2, ge=1)
    """Attention heads of the text transformer."""
    text_layers: int = Field(default=2, ge=1)
    """Blocks of the text transformer."""
    context_length: int = Field(default=12, ge=3)
    """Caption length in tokens, start and end included; longer captions are cut."""
    epochs: int = Field(default=4, ge=1)
    """Passes over the images."""
    batch_size: int = Field(default=32, ge=2)
    """Image-caption pairs per step; the incomplete last batch of an epoch is left out."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Step size of AdamW."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decay rates of AdamW's two moments."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Decay of matrices and convolutions; biases, norms and the logit scale are free of it."""
    initial_logit_scale: float = Field(default=4.0, gt=0)
    """Factor on the cosine similarities at the start; learnt from there."""
    max_shift: int = Field(default=4, ge=0)
    """Training images are shifted at random by up to this many pixels in each direction."""
    seed: int = Field(default=0, ge=0)
    """Seed of weights, order, captions and shifts."""


def train_demo_clip(
    images: UInt8[Tensor, "B 3 S S"],
    labels: Int[Tensor, " B"],
    class_words: Sequence[str],
    options: DemoClipOptions,
    *,
    on_step: OnStep | None = None,
) -> nn.Module:
    """Train on the images' device and return the open_clip `CLIP`, in evaluation mode.

    `labels` index `class_words`; each image gets a random caption of its class in each epoch. Reads and changes no global
    random state. On a CPU, the same machine, seed and thread count give the same bits.

    Raises:
        ModelError: images of another size, fewer than one batch, labels without a word, or a loss that is not finite.
    """
    from open_clip import ClipLoss

    _check(images, labels, class_words, options)
    model = _new_clip(options).to(images.device).train()
    captions = _captions(class_words, options.context_length)  # [classes, templates, context]
    tokens, captions = captions.unique(return_inverse=True)  # sorted, so that the end of text stays the largest
    embedding = _narrow_vocabulary(model, tokens)
    optimizer = torch.optim.AdamW(_parameter_groups(model, options), lr=options.learning_rate, betas=options.betas)
    contrastive = ClipLoss()
    generator = torch.Generator().manual_seed(options.seed)
    steps_per_epoch = len(images) // options.batch_size
    steps = options.epochs * steps_per_epoch
    for step in range(steps):
        if step % steps_per_epoch == 0:
            order = torch.randperm(len(images), generator=generator)
        rows = order[step % steps_per_epoch * options.batch_size :][: options.batch_size].to(images.device)
        # One template for the whole batch: captions that differ by template as well would mostly teach to ignore it.
        template = int(torch.randint(len(TEMPLATES), (), generator=generator))
        texts = captions[labels[rows].cpu(), template].to(images.device)
        shifted = _shift(images[rows], options.max_shift, generator)
        loss = contrastive(*_features_and_scale(model, _normalise(shifted), texts))
        _step(model, optimizer, loss)
        value = loss.item()
        if not math.isfinite(value):
            raise ModelError(
                f"demo CLIP: the loss is {value} at step {step + 1} of {steps}; lower learning_rate={options.learning_rate}"
            )
        if on_step is not None:
            on_step(step + 1, steps, value)
    _widen_vocabulary(model, tokens, embedding)
    return model.eval()


@torch.inference_mode()
def zero_shot_accuracy(
    model: nn.Module, images: UInt8[Tensor, "B 3 S S"], labels: Int[Tensor, " B"], class_words: Sequence[str]
) -> float:
    """Share of images whose nearest class is theirs; a class is the mean of its captions' features (section 3.1.4 of [1]).

    The model must be in evaluation mode, on the images' device.
    """
    from open_clip import build_zero_shot_classifier

    def tokenizer(texts: list[str]) -> Tensor:
        return _tokenize(texts, model.context_length)

    classifier = build_zero_shot_classifier(model, tokenizer, list(class_words), list(TEMPLATES), device=images.device)
    correct = 0
    for start in range(0, len(images), EVALUATION_BATCH):
        batch = slice(start, start + EVALUATION_BATCH)
        features = model.encode_image(_normalise(images[batch]), normalize=True)
        correct += int(((features @ classifier).argmax(dim=1) == labels[batch]).sum())
    return correct / len(images)


def save_demo_clip(model: nn.Module, folder: Path, options: DemoClipOptions) -> None:
    """Write the directory that `open_clip.create_model_and_transforms("local-dir:<folder>")` loads.

    Equal weights and options give equal bytes.
    """
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
    from safetensors.torch import save_file

    config = {
        "model_cfg": _model_config(options),
        "preprocess_cfg": {
            "mean": OPENAI_DATASET_MEAN,
            "std": OPENAI_DATASET_STD,
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    weights = {name: weight.detach().cpu().contiguous() for name, weight in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors", metadata={"format": "pt"})


def _model_config(options: DemoClipOptions) -> dict[str, Any]:
    return {
        "embed_dim": options.embedding_width,
        "vision_cfg": {
            "image_size": options.image_size,
            "layers": list(options.vision_layers),
            "width": options.width,
            "patch_size": None,
        },
        "text_cfg": {
            "context_length": options.context_length,
            "vocab_size": 49408,  # the library's own byte-pair vocabulary
            "width": options.text_width,
            "heads": options.text_heads,
            "layers": options.text_layers,
        },
    }


def _new_clip(options: DemoClipOptions) -> nn.Module:
    from open_clip import CLIP

    # Layers draw their first weights from the global generator: lend them one of our own, on the CPU.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        return CLIP(**_model_config(options), init_logit_scale=math.log(options.initial_logit_scale))


def _narrow_vocabulary(model: nn.Module, tokens: Int[Tensor, " tokens"]) -> nn.Embedding:
    """Leave only the rows that captions use, and return the embedding of all.

    Captions use 21 of 49,408 rows. The others have no gradient, yet AdamW would spend more time on them than on all else.
    """
    complete: nn.Embedding = model.token_embedding
    model.token_embedding = nn.Embedding.from_pretrained(complete.weight.detach()[tokens], freeze=False)
    return complete


def _widen_vocabulary(model: nn.Module, tokens: Int[Tensor, " tokens"], complete: nn.Embedding) -> None:
    """Put all rows back, the trained ones among them."""
    with torch.no_grad():
        complete.weight[tokens] = model.token_embedding.weight
    model.token_embedding = complete


def _parameter_groups(model: nn.Module, options: DemoClipOptions) -> list[dict[str, Any]]:
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": options.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def _captions(class_words: Sequence[str], context_length: int) -> Int[Tensor, "classes templates context"]:
    texts = [template.format(word) for word in class_words for template in TEMPLATES]
    return _tokenize(texts, context_length).unflatten(0, (len(class_words), len(TEMPLATES)))


def _tokenize(texts: list[str], context_length: int) -> Int[Tensor, "texts context"]:
    from open_clip import tokenize

    return tokenize(texts, context_length=context_length)


def _features_and_scale(
    model: nn.Module, images: Float[Tensor, "B 3 S S"], texts: Int[Tensor, "B context"]
) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D"], Float[Tensor, ""]]:
    image_features = model.encode_image(images, normalize=True)
    return image_features, model.encode_text(texts, normalize=True), model.logit_scale.exp()


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        model.logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))


def _normalise(images: UInt8[Tensor, "B 3 S S"]) -> Float[Tensor, "B 3 S S"]:
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    return (images / 255 - mean) / std


def _shift(images: UInt8[Tensor, "B 3 S S"], max_shift: int, generator: torch.Generator) -> UInt8[Tensor, "B 3 S S"]:
    """Each image by its own offset; its border pixels repeat where it leaves a gap."""
    offsets = torch.randint(-max_shift, max_shift + 1, (2, len(images), 1), generator=generator)
    last = images.shape[-1] - 1
    y, x = (torch.arange(last + 1) + offsets).clamp(0, last).to(images.device)  # [B, S] each
    image = torch.arange(len(images), device=images.device)
    return images[image[:, None, None], :, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)  # from [B, S, S, 3]


def _check(images: Tensor, labels: Tensor, class_words: Sequence[str], options: DemoClipOptions) -> None:
    expected = (3, options.image_size, options.image_size)
    if images.shape[1:] != expected:
        raise ModelError(f"demo CLIP: images of shape {tuple(images.shape[1:])}, expected {expected}; see image_size")
    if len(images) != len(labels) or len(images) < options.batch_size:
        raise ModelError(
            f"demo CLIP: {len(images)} images with {len(labels)} labels, expected as many labels as images "
            f"and at least one batch of {options.batch_size}"
        )
    if not 0 <= int(labels.min()) <= int(labels.max()) < len(class_words):
        raise ModelError(
            f"demo CLIP: labels from {int(labels.min())} to {int(labels.max())}, expected 0 to {len(class_words) - 1}, "
            "an index into the class words"
        )
