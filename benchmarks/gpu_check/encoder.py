"""Step `encoder`: RN50x64 at 448 px by batch, in plain layout, with cuDNN's benchmark, compiled: images/s and memory.

Random weights compute as long as good ones. The pixels are on the device: decoding is step `feeds`.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_check.checks import Attempt, Check, Setup, passed_if
from benchmarks.gpu_check.clock import peak_memory, seconds
from benchmarks.pictures import photographs
from models.clip.encoder import LAST_STAGE, ClipPatchEncoder, load_clip
from models.clip.options import ClipOptions
from models.encoders.arithmetic import AUTOCAST
from models.tokenizers.kclip import NearestCentroid

Work = Callable[[Tensor], Tensor]


def attempts(setup: Setup) -> Iterator[Attempt]:
    with tempfile.TemporaryDirectory(prefix="mapet-encoder-") as folder:
        options = ClipOptions(model=_model(setup, Path(folder)), pretrained="", precision="fp16")
        for batch in (2,) if setup.quick else (64, 128, 256):
            yield f"batch {batch}", lambda batch=batch: _eager(options, batch, setup)
        batch = setup.size(128, 2)
        yield "assignment", lambda: _assignment(options, batch, setup)
        yield "bf16", lambda: _bf16(options, batch, setup)
        yield "plain layout", lambda: _plain(options, batch, setup)
        yield "cudnn.benchmark", lambda: _tuned(options, batch, setup)
        yield "halving", lambda: _halving(options, setup)
        if not setup.quick:
            yield "compiled", lambda: _compiled(options, batch, setup)


def _model(setup: Setup, folder: Path) -> str:
    if not setup.quick:
        return "RN50x64-quickgelu"
    from tests.tiny_clip import write_tiny_clip

    return write_tiny_clip(folder / "clip")


def _eager(options: ClipOptions, batch: int, setup: Setup) -> Iterator[Check]:
    encoder = load_clip(options, device=setup.device)
    yield from _measured(f"eager, {batch} images", encoder, _pixels(encoder, batch, setup), setup)


def _assignment(options: ClipOptions, batch: int, setup: Setup) -> Iterator[Check]:
    encoder = load_clip(options, device=setup.device)
    pixels = _pixels(encoder, batch, setup)
    codebook = NearestCentroid(_centroids(encoder, pixels, setup.size(8192, 16)))
    yield from _measured(f"eager and tokens, {batch} images", lambda images: codebook(encoder(images)), pixels, setup)


def _bf16(options: ClipOptions, batch: int, setup: Setup) -> Iterator[Check]:
    encoder = load_clip(options.model_copy(update={"precision": "bf16"}), device=setup.device)
    yield from _measured(f"eager, bf16, {batch} images", encoder, _pixels(encoder, batch, setup), setup)


def _compiled(options: ClipOptions, batch: int, setup: Setup) -> Iterator[Check]:
    encoder, eager = (load_clip(options, device=setup.device, compile_trunk=on) for on in (True, False))
    pixels = _pixels(encoder, batch, setup)
    yield from _measured(f"compiled, {batch} images", encoder, pixels, setup)
    few = pixels[:4]
    alike = torch.nn.functional.cosine_similarity(encoder(few).float(), eager(few).float(), dim=-1).min().item()
    yield passed_if(alike > 0.999, "compiled as eager", value=alike, unit="smallest cosine")


class PlainLayout(ClipPatchEncoder):
    """The encoder without its channels-last layout: what there would be without that line."""

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        pixels = (images.float() / 255 - self.mean) / self.std
        dtype = AUTOCAST[self.precision]
        with torch.autocast(pixels.device.type, dtype=dtype, enabled=dtype is not None):
            output = self.trunk.forward_intermediates(pixels, indices=[LAST_STAGE], intermediates_only=True)
        return output["image_intermediates"][0].flatten(2).transpose(1, 2).to(torch.float16).contiguous()


def _plain(options: ClipOptions, batch: int, setup: Setup) -> Iterator[Check]:
    encoder = load_clip(options, device=setup.device)
    encoder.trunk.to(memory_format=torch.contiguous_format)
    encoder.__class__ = PlainLayout  # same weights, same preprocessing, another forward
    yield from _measured(f"plain layout, {batch} images", encoder, _pixels(encoder, batch, setup), setup)


def _tuned(options: ClipOptions, batch: int, setup: Setup) -> Iterator[Check]:
    encoder = load_clip(options, device=setup.device)
    torch.backends.cudnn.benchmark = True
    try:
        yield from _measured(f"cudnn.benchmark, {batch} images", encoder, _pixels(encoder, batch, setup), setup)
    finally:
        torch.backends.cudnn.benchmark = False


def _halving(options: ClipOptions, setup: Setup) -> Iterator[Check]:
    """Check that a batch is halved in less memory than it needs, and that its features stay."""
    from pipeline.engine.batches import Batch
    from pipeline.engine.memory import Halving

    if not setup.is_cuda:
        yield Check("halving", "left out", note="a CPU's memory cannot be limited so")
        return
    encoder = load_clip(options, device=setup.device)
    pixels = _pixels(encoder, setup.size(64, 256), setup)
    whole, needed = encoder(pixels).float(), peak_memory(lambda: encoder(pixels), setup.device)
    with limited_memory(int(0.7 * needed)):
        halves = list(
            Halving[Batch, Tensor](lambda batch: encoder(batch.inputs[0]))(Batch(np.arange(len(pixels)), (pixels,)))
        )
    alike = torch.nn.functional.cosine_similarity(torch.cat([x for _, x in halves]).float(), whole, dim=-1).min()
    note = f"{len(halves)} pieces, smallest cosine to the whole {alike.item():.5f}"
    yield passed_if(len(halves) > 1 and alike.item() > 0.999, "halving", note=note)


@contextmanager
def limited_memory(room: int) -> Iterator[None]:
    """Leave this process only so many more bytes of the card meanwhile."""
    torch.cuda.empty_cache()
    total = torch.cuda.memory_reserved() + room
    torch.cuda.set_per_process_memory_fraction(total / torch.cuda.get_device_properties(0).total_memory)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def _pixels(encoder: ClipPatchEncoder, batch: int, setup: Setup) -> Tensor:
    """Decode photographs, uint8 [batch, 3, side, side]: in noise all patches are alike, nearest centroids in doubt."""
    from pipeline.data.decode import decode_image
    from pipeline.data.decoding_options import DecodingOptions

    limit = DecodingOptions().max_pixels
    decoded = [
        decode_image(data, encoder.preprocessing, preset="exact", max_pixels=limit).pixels
        for data in photographs(min(batch, 32))
    ]
    return torch.from_numpy(np.stack([decoded[place % len(decoded)] for place in range(batch)])).to(setup.device)


def _centroids(encoder: ClipPatchEncoder, pixels: Tensor, vocabulary: int) -> Tensor:
    """Make centroids, [vocabulary, D], of pairs of the patch features at hand: their means."""
    rows = encoder(pixels).flatten(0, 1).float()
    pairs = torch.randint(len(rows), (vocabulary, 2), generator=torch.Generator().manual_seed(0)).to(rows.device)
    return rows[pairs].mean(1)


def _measured(name: str, work: Work, pixels: Tensor, setup: Setup) -> Iterator[Check]:
    took = seconds(lambda: work(pixels), setup.device, count=setup.size(5, 1))
    yield Check(name, "measured", len(pixels) / took, "images/s")
    memory = peak_memory(lambda: work(pixels), setup.device)
    if memory:
        yield Check(f"{name}, memory", "measured", memory / 2**30, "GiB beyond the weights")
