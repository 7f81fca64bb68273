"""Which kinds of image source there are: `open_source` picks the one that the options name."""

from pathlib import Path

from pipeline.data.source_options import ImageSourceOptions
from pipeline.data.sources.base import ImageSource
from pipeline.data.sources.fashion_mnist import INSTALLED_AT, PACKAGE, FashionMnistSource
from pipeline.data.sources.folder import FolderSource
from pipeline.data.sources.parquet import ParquetSource
from pipeline.data.sources.transfer import TRANSFER_KINDS, TransferSource
from pipeline.data.sources.webdataset import WebDatasetSource
from pipeline.engine.errors import PipelineError


def open_source(options: ImageSourceOptions) -> ImageSource:
    """Return the source that `options` describe; nothing is read yet.

    Raises:
        PipelineError: no path, not a directory, or an option that the kind cannot use.
    """
    if options.kind == "demo":
        raise PipelineError("images.kind=demo is written to a folder first; open that folder as kind=folder")
    root = _existing_directory(options)
    if options.kind == "folder":
        return FolderSource(root, options)
    if options.labels_csv:
        raise PipelineError(
            f"images.labels_csv={options.labels_csv} gives labels to a folder, but images.kind={options.kind}, "
            "which carries its own labels; leave labels_csv empty"
        )
    if options.kind == "fashion_mnist":
        return FashionMnistSource(root)
    if options.kind in TRANSFER_KINDS:
        return TransferSource(root, options)
    return ParquetSource(root, options) if options.kind == "parquet" else WebDatasetSource(root, options)


def _existing_directory(options: ImageSourceOptions) -> Path:
    if not options.path:
        raise PipelineError(
            "images.path is empty; give the directory of the images, such as images.path=/data/imagenet"
        )
    root = Path(options.path).expanduser()
    if root == INSTALLED_AT and not root.exists():
        raise PipelineError(f"images.path={root} does not exist: apt install {PACKAGE} (Debian, Ubuntu) puts it there")
    if not root.exists():
        raise PipelineError(f"images.path={root} does not exist; check the spelling, or mount the data set")
    if not root.is_dir():
        raise PipelineError(f"images.path={root} is a file; give the directory that holds the {options.kind} files")
    return root.absolute()
