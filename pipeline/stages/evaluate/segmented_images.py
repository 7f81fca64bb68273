"""The images that segmentation is trained on and judged by, and what stands for them in a fingerprint."""

from functools import partial
from pathlib import Path

from pipeline.data.segmentation_files import SegmentationFiles, Sizes, list_files, read_files, unread_files
from pipeline.data.segmentation_images import SegmentationImages
from pipeline.engine.errors import PipelineError
from pipeline.stages.evaluate.evaluation_options import SegmentationOptions
from storage.files import sha256_bytes
from storage.layout import Layout


def segmentation_splits(options: SegmentationOptions) -> tuple[SegmentationImages, SegmentationImages]:
    """Return the training and validation images. Raises PipelineError when they are not laid out as they should be."""
    if not options.path:
        raise PipelineError("segmentation.path is empty; give the root of ADEChallengeData2016, or of such a layout")
    zero = options.label_zero or "other"
    scan = partial(SegmentationImages.scan, Path(options.path), classes=options.classes, label_zero=zero)
    return scan("train"), scan("val")


def segmentation_identity(options: SegmentationOptions) -> str:
    """Return what stands for the images in a fingerprint unless their contents do: SHA-256 of the names and sizes of
    all files, of which none is opened.

    Raises:
        PipelineError: they are not laid out as they should be.
    """
    return _identity_of(_file_sizes(options))


def identified_files(options: SegmentationOptions, layout: Layout) -> SegmentationFiles:
    """Return the files, with what stands for them in a fingerprint.

    Raises:
        PipelineError: as `segmentation_identity`, or a file changed while it was read.
        OSError: files are read to identify them, and the machine is at fault.
    """
    sizes, root = _file_sizes(options), Path(options.path)
    identity = _identity_of(sizes)
    if options.identity == "listing":
        return list_files(root, sizes, identity)
    return read_files(root, sizes, identity, layout.contents(root.absolute()))


def unread_words(options: SegmentationOptions, layout: Layout) -> str:
    """Return what `identified_files` has to read; "" for nothing. Raises PipelineError as `segmentation_identity`."""
    if options.identity == "listing":
        return ""
    root = Path(options.path)
    words = unread_files(root, _file_sizes(options), layout.contents(root.absolute()))
    return f"segmentation: {words} (segmentation.identity=content)" if words else ""


def _file_sizes(options: SegmentationOptions) -> Sizes:
    return [item for split in segmentation_splits(options) for item in split.file_sizes()]


def _identity_of(sizes: Sizes) -> str:
    return sha256_bytes("".join(f"{name}\0{size}\n" for name, size in sorted(sizes)).encode())
