"""Does the memory of a build depend on the number of images? It must not: ImageNet has 1.28 million.

The stages that see every image (index_images, extract_features, tokenize_images) run for few and for many images, each
in a process of its own with two decoding workers, and a CLIP so small that nothing hides behind its weights.
"""

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import MeasuredProcess, Measurement, in_own_process
from benchmarks.pictures import write_small_images

IMAGES_PER_SHARD = 1_000  # both sizes fill whole shards
VOCABULARY = 4  # what is clustered does not matter here, only that there is a codebook


def run(few: int = 2_000, many: int = 20_000) -> list[Measurement]:
    """Measure the peak memory for `many` images against that for `few`."""
    small, large = (_measured(count) for count in (few, many))
    return compare(small, large, few=few, many=many)


def compare(small: MeasuredProcess, large: MeasuredProcess, *, few: int, many: int) -> list[Measurement]:
    """Compare the peaks of the process that saw `many` images with those of the one that saw `few`."""
    return [
        _compared("memory.peak_anonymous", large.peak_anonymous, small.peak_anonymous, few, many),
        _compared("memory.peak_with_workers", large.peak_family, small.peak_family, few, many),
        _compared("memory.peak_resident", large.peak_resident, small.peak_resident, few, many),
        Measurement(
            "memory.growth",
            float(large.peak_anonymous - small.peak_anonymous) / (many - few),
            "bytes of peak anonymous memory per additional image",
        ),
    ]


def _compared(name: str, large: int, small: int, few: int, many: int) -> Measurement:
    return Measurement(
        name, large / 1e6, f"MB, {many:,} images", f"{few:,} images: {small / 1e6:.0f} MB", large / small
    )


def _measured(count: int) -> MeasuredProcess:
    with tempfile.TemporaryDirectory(prefix="mapet-memory-") as folder:
        write_small_images(Path(folder, "images"), count=count)
        return in_own_process(image_passes, folder)


def image_passes(folder: str) -> None:
    """Index, sample, cluster and tokenize the images in `<folder>/images`; runs in a process of its own."""
    import torch

    from models.clip.options import ClipOptions
    from models.kmeans.options import CodebookOptions
    from pipeline.data.decoding_options import DecodingOptions
    from pipeline.data.source_options import ImageSourceOptions
    from pipeline.encoding.feature_options import FeatureOptions
    from pipeline.engine.settings import Settings
    from pipeline.engine.workspace import Workspace
    from tests.stages import extract_features, fit_codebook, index_images, tokenize_images
    from tests.tiny_clip import write_tiny_clip

    torch.set_num_threads(1)  # operations this small only wait for each other on several threads
    workspace = Workspace(Settings(data_root=Path(folder, "data"), device="cpu", workers=2))
    source = ImageSourceOptions(kind="folder", path=f"{folder}/images", images_per_shard=IMAGES_PER_SHARD)
    clip = ClipOptions(model=write_tiny_clip(Path(folder, "clip")))
    images = index_images(source, workspace=workspace).artifact
    pixels: dict[str, Any] = {
        "images": images,
        "source": source,
        "decoding": DecodingOptions(),
        "workspace": workspace,
    }
    features = extract_features(FeatureOptions(), encoder=clip, **pixels).artifact
    options = CodebookOptions(vocabulary=VOCABULARY, iterations=2)
    codebook = fit_codebook(options, features=features, workspace=workspace).artifact
    tokenize_images(clip, codebook=codebook, **pixels)
