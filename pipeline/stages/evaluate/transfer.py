"""Cross-domain transfer (Table 5): linear probes on other data sets, each from its standard layout on disk."""

from collections.abc import Iterator

from pydantic import Field

from models.options import PathText
from pipeline.data.sources.base import ImageSourceOptions
from pipeline.data.sources.transfer import TRANSFER_KINDS
from pipeline.engine.fingerprint import SETTING
from pipeline.stages.evaluate.linear_probe import LinearProbeOptions


class TransferOptions(LinearProbeOptions):
    """The linear probe on other images than those of the pre-training; data sets without a path are left out."""

    stanford_cars: PathText = Field(default="", json_schema_extra=SETTING)
    """Folder of Stanford Cars as torchvision expects it."""

    food101: PathText = Field(default="", json_schema_extra=SETTING)
    """Folder of Food-101 as torchvision expects it."""

    fgvc_aircraft: PathText = Field(default="", json_schema_extra=SETTING)
    """Folder of FGVC-Aircraft as torchvision expects it; trained on `trainval`."""

    folder: PathText = Field(default="", json_schema_extra=SETTING)
    """Any other data set: class folders below `train/` and `val/`."""

    def sources(self) -> Iterator[tuple[str, ImageSourceOptions]]:
        """Name and source of every data set that has a path."""
        for kind in (*TRANSFER_KINDS, "folder"):
            if path := getattr(self, kind):
                yield kind, ImageSourceOptions.model_validate({"kind": kind, "path": path})
