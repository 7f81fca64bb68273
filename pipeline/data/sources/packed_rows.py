"""Rows that are found one by one, held as Arrow's columns: as Python's objects an image would take a kilobyte."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from storage.image_index import compact

_ROWS_OF_A_BATCH = 1 << 14


class PackedRows:
    """A table that is appended to; the rows that came last are still lists."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._batches: list[pa.RecordBatch] = []
        self._waiting = self._no_rows()

    def __len__(self) -> int:
        return sum(map(len, self._batches)) + len(self._waiting[0])

    def append(self, *row: Any) -> None:
        """Add a row: a value for each column, in the schema's order."""
        for column, value in zip(self._waiting, row, strict=True):
            column.append(value)
        if len(self._waiting[0]) == _ROWS_OF_A_BATCH:
            self._pack()

    def table(self) -> pa.Table:
        """Return all rows so far; nothing is copied."""
        self._pack()
        return pa.Table.from_batches(self._batches, self._schema)

    def compacted(self) -> pa.Table:
        """Hand over all rows in one piece: many small arrays lie in twice their memory, and these are kept here no
        longer."""
        table = compact(self._handed_over())
        pa.default_memory_pool().release_unused()  # the pool would rather keep for later what was freed
        return table

    def _handed_over(self) -> pa.Table:
        table, self._batches = self.table(), []
        return table

    def lists(self, *names: str) -> Iterator[tuple[list[Any], ...]]:
        """Yield these columns as lists of Python's objects, a batch of rows after the other."""
        self._pack()
        for batch in self._batches:
            yield tuple(batch[name].to_pylist() for name in names)

    def drain(self) -> Iterator[tuple[list[Any], ...]]:
        """Yield all columns as `lists` does, and let go of every batch that was yielded."""
        self._pack()
        while self._batches:
            yield tuple(column.to_pylist() for column in self._batches.pop(0).columns)

    def replace(self, number: int, **columns: list[Any]) -> None:
        """Put other values in place of some columns of a batch, by its place among those of `lists`."""
        for name, values in columns.items():
            place = self._schema.get_field_index(name)
            column = _packed(values, self._schema.field(place))
            self._batches[number] = self._batches[number].set_column(place, self._schema.field(place), column)

    def _pack(self) -> None:
        if self._waiting[0]:
            columns = [_packed(values, field) for values, field in zip(self._waiting, self._schema, strict=True)]
            self._batches.append(pa.record_batch(columns, schema=self._schema))
            self._waiting = self._no_rows()

    def _no_rows(self) -> list[list[Any]]:
        return [[] for _ in self._schema]


def _packed(values: list[Any], field: pa.Field) -> pa.Array:
    return pa.array(values, field.type)
