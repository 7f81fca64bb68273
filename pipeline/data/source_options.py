"""The choices of images: where they come from."""

from typing import Literal

from pydantic import Field

from models.options import Options, PathText
from pipeline.engine.fingerprint import SETTING

TopFolders = Literal["", "splits", "classes"]


class ImageSourceOptions(Options):
    """Which images, and how they are laid out on disk."""

    kind: Literal[
        "demo", "folder", "parquet", "webdataset", "stanford_cars", "food101", "fgvc_aircraft", "fashion_mnist"
    ] = "folder"
    """folder: class directories (ImageFolder, ILSVRC); parquet: Hugging Face's layout; webdataset: plain tar shards;
    stanford_cars, food101, fgvc_aircraft, fashion_mnist: those data sets as published, their test images as `val`."""
    path: PathText = Field(default="", json_schema_extra=SETTING)
    """Root directory of the images; ~ is expanded. Where it lies does not change a result."""
    split: Literal["", "train", "val", "test"] = ""
    """The split of images for which neither directory nor file names tell one."""
    top_folders: TopFolders = ""
    """What the uppermost directories are where their names leave it open (`train2017`, a class called `train`): splits
    or classes. Empty: what is clear is recognised (and told), what is not is asked."""
    labels_csv: PathText = Field(default="", json_schema_extra=SETTING)
    """Kaggle's LOC_val_solution.csv (ImageId,PredictionString): labels for a flat val/. Empty: looked for near path."""
    json_label_key: str = "label"
    """webdataset: the key of the label in a sample's .json, when it has no .cls."""
    member_ending: str = ""
    """webdataset: what the images' members are called after the first dot, such as input.png, where a sample has
    several images. Empty: the ending of any image format."""
    image_column: str = ""
    """parquet: the column of the images. Empty: `image`, or the only one that can be."""
    label_column: str = ""
    """parquet: the column of the labels. Empty: `label`, or the only one of a usual name (labels, fine_label, ...)."""
    first_label: int = Field(default=0, ge=0, le=10**6)
    """The number of the first class, where labels are numbers: 1 for labels that are counted from 1."""
    images_per_shard: int = Field(default=4096, ge=1, le=2**31 - 1)
    """Images that are read, written and resumed together."""
    identity: Literal["listing", "content"] = Field(default="listing", json_schema_extra=SETTING)
    """What makes two data sets the same one. listing: names, labels and sizes, of Parquet files their footers too, of
    tars their headers; content: every byte of every image, which is read once and remembered until its file's size or
    time of change is another. It tells apart what a file edited to the same size hides from the listing."""
