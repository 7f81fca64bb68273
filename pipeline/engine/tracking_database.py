"""MLflow's SQLite database below the data root, looked at before MLflow opens it. No import of MLflow.

MLflow keeps absolute addresses: an experiment has that of its files, fixed when it is made, and each run its own. In a
data root that was copied or moved they lead back to the old place, where new runs would go on writing and old ones be
looked for. So whoever opens the database first leads them to where it lies now.
"""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from storage.layout import Layout

_ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
_SECONDS_FOR_OTHERS = 20.0  # as MLflow waits for another program's write


def lead_files_here(layout: Layout) -> None:
    """Make the addresses of a database that was copied or moved with its data root those of this one.

    Addresses that were never below a data root stay, and so do those that lead to this folder under another name, such
    as a link to it.

    Raises:
        sqlite3.Error: it is no database, damaged, locked, not to be written to, or not MLflow's.
    """
    home = layout.tracking_artifacts.as_uri()
    address = f"{layout.tracking_database.as_uri()}?mode=rw"
    with closing(sqlite3.connect(address, uri=True, timeout=_SECONDS_FOR_OTHERS, isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")  # fails here, and not at the first number of a run
        for old in list(_other_homes(database, layout)):
            for table, column in _ADDRESSES:
                database.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # nosec B608 (names of our own)
                    f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (home, len(old) + 1, old, len(old) + 1, f"{old}/"),
                )
        database.execute("COMMIT")


def _other_homes(database: sqlite3.Connection, layout: Layout) -> Iterator[str]:
    """Yield addresses of the folder `tracking_artifacts` of other data roots, as experiments have them.

    MLflow's server gives each experiment that it makes a folder of its own there, named by its number.
    """
    inside = "/".join(layout.tracking_artifacts.relative_to(layout.root).parts)
    found = {}
    for number, location in database.execute("SELECT experiment_id, artifact_location FROM experiments"):
        if match := re.fullmatch(rf"((?:file:|/).*/{inside})(?:/{number})?", location or ""):
            found[match[1]] = Path(unquote(urlsplit(match[1]).path))
    for address, folder in found.items():
        if address != layout.tracking_artifacts.as_uri() and not _is_same(
            folder.parent, layout.tracking_artifacts.parent
        ):
            yield address


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # it is gone, or of another machine
        return False
