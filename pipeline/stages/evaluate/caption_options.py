"""What can be chosen of the captions of zero-shot classification."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator

_BRACES = re.compile(r"[{}]")


def _check_templates(value: object) -> object:
    if value in ("openai", "simple", "demo"):
        return value
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("expected openai, simple, demo, or a list of captions")
    for template in value:
        if not isinstance(template, str) or _BRACES.findall(template) != ["{", "}"] or "{}" not in template:
            raise ValueError(f"expected one {{}} for the class name in the caption {template!r}")
    return value


def _read_names(value: object) -> object:
    """Return the lines of a file in place of its path: the names define the result then, and not where they stood."""
    if isinstance(value, str) and value not in ("auto", "imagenet"):
        try:
            value = tuple(Path(value).expanduser().read_text(encoding="utf-8").splitlines())
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"expected auto, imagenet, a list of names, or a text file that can be read ({error})"
            ) from None
    if isinstance(value, list | tuple) and not all(value):
        raise ValueError("expected a name, or a line, for every class, and found an empty one")
    return value


Templates = Annotated[Literal["openai", "simple", "demo"] | tuple[str, ...], BeforeValidator(_check_templates)]
ClassOrder = Literal["", "index", "number"]
ClassNames = Annotated[Literal["auto", "imagenet"] | tuple[str, ...], BeforeValidator(_read_names)]
