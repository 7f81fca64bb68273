"""A CLIP small enough to train in a minute or two on a CPU, for the demo: ordinary open_clip in every other respect.

The smallest ModifiedResNet with the architecture of RN50x64 (three-convolution stem, four stages, attention pooling)
and a two-layer text transformer learn from captions made of class words, with CLIP's symmetric contrastive loss [1]

    L = (CE(s * I T^t) + CE(s * T I^t)) / 2,    I, T unit rows of image and text features, s the learnt logit scale.

650 steps leave no time for CLIP's first plateau, where images tell nothing yet and the captions' best answer is to look
alike. So captions first learn to tell the classes apart by themselves (a second of work; the same loss, between two
captions of each class) and then move slowly: in single trials at a constant step size, the loss after 160 steps was 2.7
instead of 3.3, where chance is 3.5. All captions of a batch share a template. The initial scale is 4, not 1/0.07:
images of one class in a batch are false negatives of each other; an early trial reached 37 % with 4, 19 % with 1/0.07.
The result is saved as the directory that open_clip itself loads.

[1] Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from models.clip.demo_options import MAX_LOGIT_SCALE, DemoClipOptions
from models.clip.encoder import OpenClip, WholeClip, outline_clip
from models.clip.options import ClipOptions
from models.clip.weight_files import CONFIG, WEIGHTS
from models.clip.zero_shot import ZeroShotClassifier
from models.encoders.base import PatchEncoder
from models.encoders.preprocessing import Preprocessing
from models.errors import ModelError
from models.weights.state_files import write_safetensors

TEMPLATES = (
    "{}",
    "the digit {}",
    "a handwritten {}",
    "a photo of the number {}",
)
TEXT_LOGIT_SCALE = 10.0  # while captions learn alone; ten exact pairs without false negatives bear more than 4
EVALUATION_BATCH = 250  # images; does not change a result

OnStep = Callable[[int, int, float], None]
"""Called after each step with (steps done, steps in all, loss)."""


def train_demo_clip(
    images: UInt8[Tensor, "B 3 side side"],
    labels: Int[Tensor, " B"],
    class_words: Sequence[str],
    options: DemoClipOptions,
    *,
    on_step: OnStep | None = None,
) -> nn.Module:
    """Train on the images' device and return the open_clip `CLIP`, in evaluation mode.

    `labels` index `class_words`. Reads and changes no global random state; on a CPU, the same machine, seed and thread
    count give the same bits.

    Raises:
        ModelError: images of another size, fewer than one batch, labels without a word, or a loss that is not finite.
    """
    from open_clip import ClipLoss

    _check(images, labels, class_words, options)
    device, generator = images.device, torch.Generator().manual_seed(options.seed)
    model = _new_clip(options).to(device).train()
    captions = _captions(class_words, options.context_length).to(device)  # [classes, templates, context]
    tokens, captions = captions.unique(return_inverse=True)  # sorted, so that the end of text stays the largest
    embedding = _narrow_vocabulary(model, tokens)
    _tell_captions_apart(model, captions, options, generator)
    steps = options.epochs * (len(images) // options.batch_size)
    optimizer = torch.optim.AdamW(_parameter_groups(model, options), betas=options.betas)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_rise_and_fall, steps=steps, warmup=options.warmup))
    contrastive = ClipLoss()
    for step, rows in enumerate(_batches(len(images), options, generator), start=1):
        # One template for the whole batch: captions that differ by template as well would mostly teach to ignore it.
        template = int(torch.randint(len(TEMPLATES), (), generator=generator))
        texts = captions[labels.to(device)[rows], template]
        pixels = _normalise(_shift(images[rows], options.max_shift, generator))
        loss = contrastive(*_features_and_scale(model, pixels, texts))
        _refuse_non_finite(loss.item(), step, steps, options)
        _step(model, optimizer, loss)
        schedule.step()
        if on_step is not None:
            on_step(step, steps, loss.item())
    _widen_vocabulary(model, tokens, embedding)
    model.eval()
    return model


def class_words(classes: Sequence[str]) -> list[str]:
    """Return what captions call the classes of the demo's images: "3_three" is "three"."""
    return [name.split("_")[-1] for name in classes]


@torch.inference_mode()
def zero_shot_accuracy(
    model: OpenClip, images: UInt8[Tensor, "B 3 side side"], labels: Int[Tensor, " B"], class_words: Sequence[str]
) -> float:
    """Return the share of images whose nearest class is theirs; a class is its captions' mean feature ([1], 3.1.4).

    The model must be in evaluation mode, on the images' device.
    """
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    def tokenizer(texts: list[str]) -> Tensor:
        return _tokenize(texts, model.context_length)

    clip = WholeClip(model, tokenizer, Preprocessing(images.shape[-1], OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    classifier = ZeroShotClassifier(clip, class_words, TEMPLATES, precision="fp32")
    batches = zip(images.split(EVALUATION_BATCH), labels.split(EVALUATION_BATCH), strict=True)
    correct = sum(int((classifier(some).argmax(dim=1) == theirs).sum()) for some, theirs in batches)
    return correct / len(images)


def save_demo_clip(model: OpenClip, folder: Path, options: DemoClipOptions) -> None:
    """Write the directory that `open_clip.create_model_and_transforms("local-dir:<folder>")` loads.

    Equal weights and options give equal bytes.
    """
    config = {"model_cfg": _model_config(options), "preprocess_cfg": _preprocess_config()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    write_safetensors(folder / WEIGHTS, model.state_dict())


def outline_demo_clip(options: DemoClipOptions, clip: ClipOptions) -> PatchEncoder:
    """Describe, as `outline_clip` does, the CLIP that these options train.

    Raises:
        ModelError: its image size does not fit.
    """
    return outline_clip(clip, {**_model_config(options), "preprocess_cfg": _preprocess_config()})


def _preprocess_config() -> dict[str, Any]:
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    return {
        "mean": OPENAI_DATASET_MEAN,
        "std": OPENAI_DATASET_STD,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }


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


def _new_clip(options: DemoClipOptions) -> OpenClip:
    from open_clip import CLIP

    # Layers draw their first weights from the global generator: lend them one of our own, on the CPU.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        return CLIP(**_model_config(options), init_logit_scale=math.log(options.initial_logit_scale))


def _narrow_vocabulary(model: OpenClip, tokens: Int[Tensor, " tokens"]) -> nn.Embedding:
    """Leave only the rows that captions use, and return the embedding of all.

    Captions use some 20 of 49,408 rows. The others have no gradient, yet AdamW would take longer for them than for all
    the rest.
    """
    complete: nn.Embedding = model.token_embedding
    model.token_embedding = nn.Embedding.from_pretrained(complete.weight.detach()[tokens], freeze=False)
    return complete


def _widen_vocabulary(model: OpenClip, tokens: Int[Tensor, " tokens"], complete: nn.Embedding) -> None:
    """Put all rows back, the trained ones among them."""
    with torch.no_grad():
        complete.weight[tokens] = model.token_embedding.weight
    model.token_embedding = complete


def _tell_captions_apart(
    model: OpenClip,
    captions: Int[Tensor, "classes templates context"],
    options: DemoClipOptions,
    generator: torch.Generator,
) -> None:
    """Train the text tower alone: two captions of a class are a pair, those of all other classes its negatives."""
    from open_clip import ClipLoss

    text = [weight for name, weight in model.named_parameters() if _is_text(name)]
    optimizer = torch.optim.AdamW(
        text, lr=options.learning_rate, betas=options.betas, weight_decay=options.weight_decay
    )
    contrastive, scale = ClipLoss(), torch.tensor(TEXT_LOGIT_SCALE, device=captions.device)
    for _ in range(options.text_steps):
        one, other = torch.randperm(len(TEMPLATES), generator=generator)[:2].tolist()
        features = [model.encode_text(captions[:, template], normalize=True) for template in (one, other)]
        _step(model, optimizer, contrastive(*features, scale))


def _parameter_groups(model: OpenClip, options: DemoClipOptions) -> list[dict[str, Any]]:
    groups = []
    for text, rate in ((False, options.learning_rate), (True, options.text_learning_rate)):
        tower = [weight for name, weight in model.named_parameters() if _is_text(name) == text]
        matrices, vectors = ([weight for weight in tower if (weight.ndim >= 2) == wanted] for wanted in (True, False))
        groups.append({"params": matrices, "lr": rate, "weight_decay": options.weight_decay})
        groups.append({"params": vectors, "lr": rate, "weight_decay": 0.0})
    return groups


def _is_text(name: str) -> bool:
    """Return whether a parameter belongs to the text tower, which open_clip's CLIP keeps at its top level."""
    return not name.startswith("visual.") and name != "logit_scale"


def _rise_and_fall(step: int, *, steps: int, warmup: float) -> float:
    """Return the share of the learning rate: linear up to step `warmup * steps`, times a cosine over all steps."""
    return min(1.0, (step + 1) / max(1.0, warmup * steps)) * (1 + math.cos(math.pi * step / steps)) / 2


def _captions(class_words: Sequence[str], context_length: int) -> Int[Tensor, "classes templates context"]:
    texts = [template.format(word) for word in class_words for template in TEMPLATES]
    return _tokenize(texts, context_length).unflatten(0, (len(class_words), len(TEMPLATES)))


def _tokenize(texts: list[str], context_length: int) -> Int[Tensor, "texts context"]:
    from open_clip import tokenize

    return tokenize(texts, context_length=context_length)


def _features_and_scale(
    model: OpenClip, images: Float[Tensor, "B 3 side side"], texts: Int[Tensor, "B context"]
) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D"], Float[Tensor, ""]]:
    image_features = model.encode_image(images, normalize=True)
    return image_features, model.encode_text(texts, normalize=True), model.logit_scale.exp()


def _step(model: OpenClip, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        model.logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))


def _batches(count: int, options: DemoClipOptions, generator: torch.Generator) -> Iterator[Int[Tensor, " batch"]]:
    """Yield the rows of each step's images, in a new order each epoch."""
    for _ in range(options.epochs):
        order = torch.randperm(count, generator=generator)
        for start in range(0, count - options.batch_size + 1, options.batch_size):
            yield order[start : start + options.batch_size]


def _refuse_non_finite(loss: float, step: int, steps: int, options: DemoClipOptions) -> None:
    if not math.isfinite(loss):
        raise ModelError(
            f"demo CLIP: the loss is {loss} at step {step} of {steps}, expected a finite number; "
            f"lower learning_rate={options.learning_rate}"
        )


def _normalise(images: UInt8[Tensor, "B 3 side side"]) -> Float[Tensor, "B 3 side side"]:
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    return (images / 255 - mean) / std


def _shift(
    images: UInt8[Tensor, "B 3 side side"], max_shift: int, generator: torch.Generator
) -> UInt8[Tensor, "B 3 side side"]:
    """Shift each image by an offset of its own; border pixels repeat where a gap would open."""
    offsets = torch.randint(-max_shift, max_shift + 1, (2, len(images), 1), generator=generator)
    last = images.shape[-1] - 1
    y, x = (torch.arange(last + 1) + offsets).clamp(0, last).to(images.device)  # [B, side] each
    image = torch.arange(len(images), device=images.device)
    return images[image[:, None, None], :, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)  # from [B, side, side, 3]


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
