"""Numbers in sentences."""


def counted(count: int, one: str, many: str = "") -> str:
    """`1 class`, `1,000 classes`. `many`: where it is not `one` with an s."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"
