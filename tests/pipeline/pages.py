"""Pages of reports, read as a browser would, and pictures to report on."""

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

VOID = {"meta", "img", "source", "br", "link"}


class Reader(HTMLParser):
    """Collects tags, addresses and text, and refuses tags that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.text: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "srcset", "href", "data", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def value_of(self, name: str) -> tuple[str, str]:
        """Number and detail of a key figure."""
        texts = [text for text in self.text if text.strip()]
        place = texts.index(name)
        return texts[place + 1], texts[place + 2]


def write_pictures(folder: Path, names: list[str]) -> None:
    """Smooth coloured noise, wider than high: patches of an image differ, and decoding has something to cut."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((96, 72), Image.Resampling.BICUBIC).save(path)
