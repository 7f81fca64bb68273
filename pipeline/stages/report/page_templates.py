"""The templates of pages: what they are read with, and how they print text and pictures."""

import base64
import re
from functools import lru_cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from pipeline.engine.words import counted

_TEMPLATES = Path(__file__).parent / "templates"
_MARKDOWN_SYNTAX = re.compile(r"([\\`*_{}\[\]<>|])")


def escape_markdown(text: object) -> str:
    """Escape a text so that it shows as it is, in a table's cell too: file names hold underscores, reasons hold `<` and
    `|`."""
    return _MARKDOWN_SYNTAX.sub(r"\\\1", " ".join(str(text).split()))


def data_address(picture: bytes, kind: str) -> str:
    """Return a picture as an address that holds it, `data:image/<kind>;base64,...`."""
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


@lru_cache(maxsize=1)
def page_environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    numbers = {"thousands": lambda count: f"{count:,}", "counted": counted}
    environment.filters |= {"md": escape_markdown, "data": data_address, **numbers}
    return environment
