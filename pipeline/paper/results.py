"""The paper's numbers: one `PaperResult` per number of its Tables 1-7, read from `results.csv` beside this file.

Source: "Learning to Mask and Permute Visual Tokens for Vision Transformer Pre-Training" (Baraldi et al.).
"""

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pipeline.paper.recipes import PAPER_RECIPES

SCRATCH = "ViT"  # the paper's name for training from random weights
CLASSIFIER, ZERO_SHOT = "classifier on discrete tokens", "CLIP zero-shot"
IMAGENET, ADE20K = "ImageNet-1k", "ADE20K"
PAPER_EPOCHS = 300  # of pre-training, wherever the paper does not say otherwise (its Table 8)
PAPER_BACKBONES = {"vit_tiny": "ViT-T", "vit_small": "ViT-S", "vit_base": "ViT-B"}  # our name -> the paper's
PAPER_CUTTING_POINTS = {  # MaPeT's c outside of Table 6
    PAPER_BACKBONES[name]: recipe.cutting_point for name, recipe in PAPER_RECIPES.items()
}

_FILE = Path(__file__).parent / "results.csv"
_NOT_PRETRAINED = (SCRATCH, CLASSIFIER, ZERO_SHOT)


@dataclass(frozen=True)
class Setting:
    """What was measured, in the words of `results.csv`: what finds the cell of a number in the paper's tables.

    Attributes:
        epochs: of pre-training; None where nothing was pre-trained, or nobody knows.
        cutting_point: MaPeT's c, where it is not the method's usual one for the backbone.
        panel: of Table 4, `"top"` or `"bottom"`; `""` for numbers that belong to every panel with their method.
    """

    method: str
    tokenizer: str
    backbone: str
    metric: str
    epochs: int | None = None
    cutting_point: int | None = None
    panel: str = ""


@dataclass(frozen=True)
class PaperResult:
    """A number of the paper, in percent, and whether it is printed in bold."""

    table: int
    setting: Setting
    value: float
    bold: bool


@lru_cache(maxsize=1)
def paper_results() -> tuple[PaperResult, ...]:
    """Return all numbers of Tables 1-7, in the order of the file: table by table, row by row."""
    with _FILE.open(newline="", encoding="utf-8") as lines:
        return tuple(_result(row) for row in csv.DictReader(lines))


def is_pretrained(method: str) -> bool:
    """Return whether the method starts from weights that a pre-training of images made."""
    return method not in _NOT_PRETRAINED


def _result(row: Mapping[str, str]) -> PaperResult:
    notes = row["notes"]
    setting = Setting(
        method=row["method"],
        tokenizer=row["tokenizer"],
        backbone=row["backbone"],
        metric=row["metric"],
        epochs=_number(r"(\d+) pretrain epochs", notes) or (PAPER_EPOCHS if is_pretrained(row["method"]) else None),
        cutting_point=_number(r"cutting point c=(\d+)", notes),
        panel="".join(re.findall(r"(top|bottom) panel", notes)),
    )
    return PaperResult(int(row["table"]), setting, float(row["value"]), "bold in paper" in notes)


def _number(pattern: str, notes: str) -> int | None:
    found = re.search(pattern, notes)
    return int(found[1]) if found else None
