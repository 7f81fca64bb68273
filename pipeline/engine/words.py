"""Numbers and names in sentences."""

from collections.abc import Iterable
from difflib import get_close_matches


def counted(count: int, one: str, many: str = "") -> str:
    """Write `1 class`, `1,000 classes`. `many`: the plural, where it is not `one` with an s."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return ` (did you mean 'mapet'?)`, or nothing where no name is like it."""
    close = get_close_matches(name, list(names), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
