"""What bad images mean for a run: how many are allowed, while images are read and of what was made earlier."""

from pathlib import Path

import pyarrow as pa

from pipeline.data.decoding_options import DecodingOptions
from pipeline.engine.errors import PipelineError
from storage import image_records
from storage.image_index import ImageIndex


class BadImages:
    """Counts the bad images of a pass and stops it when there are too many."""

    def __init__(self, index: ImageIndex, decoding: DecodingOptions) -> None:
        self._index, self._decoding = index, decoding
        self._read, self._bad = 0, image_records.SCHEMA.empty_table()

    def add(self, records: pa.Table) -> None:
        """Raises PipelineError when more images are bad than `max_bad_images`."""
        self._read += len(records)
        self._bad = pa.concat_tables([self._bad, image_records.bad_images(records)])
        if len(self._bad) > self._decoding.max_bad_images:
            self._refuse(f"{self._decoding.max_bad_images} are allowed")

    def refuse_none_good(self) -> None:
        """Raises PipelineError when there were images and all are bad."""
        if self._read and len(self._bad) == self._read:
            self._refuse("not one is good")

    def _refuse(self, expected: str) -> None:
        examples = "; ".join(
            f"{self._index.name(item['row'])}: {item['reason']}" for item in self._bad.slice(0, 3).to_pylist()
        )
        raise PipelineError(
            f"{len(self._bad)} of the {self._read} images read so far are bad, {expected} ({examples}); `mapet verify` "
            "on the data set lists them all: mend it, or raise decoding.max_bad_images; what is done is kept"
        )


def require_allowed(bad: int, decoding: DecodingOptions, path: Path) -> None:
    """Hold a finished artifact to the policy of this run: what was made under a laxer one may be found in the cache.

    Args:
        bad: how many bad images it has.
        path: where it is.

    Raises:
        PipelineError: it has more bad images than allowed.
    """
    allowed = 0 if decoding.on_bad_image == "fail" else decoding.max_bad_images
    if bad > allowed:
        raise PipelineError(
            f"{path}: has {bad} bad images, this run allows {allowed}; mend the data set, or allow them by "
            "decoding.on_bad_image=mark and decoding.max_bad_images"
        )
