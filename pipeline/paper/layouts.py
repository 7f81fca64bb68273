"""How the paper prints its Tables 1-7: which rows and columns, and where a number belongs.

A `Layout` names the row and the column of any `Setting`, be it the paper's or ours. The order of rows and columns, and
which there are, follows from the paper's numbers (`results.csv` keeps their order).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.paper.results import ADE20K, IMAGENET, PAPER_CUTTING_POINTS, SCRATCH, Setting, paper_results

_TOP1, _PROBE = "Top-1 Acc. (%)", "Linear Probe Acc. (%)"
_METRICS = {
    "top1_finetune": _TOP1,
    "linear_probe_top1": _PROBE,
    "top1_tokens_as_input": _TOP1,
    "top5_tokens_as_input": "Top-5 Acc. (%)",
}
_DATA_SETS = {"stanford_cars": "Stanford-Cars", "food101": "Food-101", "fgvc_aircraft": "FGVC-Aircraft"}
_CITED = {
    SCRATCH: "Dosovitskiy et al., 2021",
    "CAE": "Chen et al., 2023",
    "BEiT": "Bao et al., 2022",
    "SplitMask": "El-Nouby et al., 2021",
    "MaskFeat": "Wei et al., 2022a",
    "PeCo": "Dong et al., 2023",
    "MVP": "Wei et al., 2022b",
    "BEiT v2": "Peng et al., 2022",
}
_RATIOS = {30: "85%", 40: "80%", 50: "75%", 60: "70%", 98: "50%"}  # of 196 patches, as the paper rounds them


class RowKey(NamedTuple):
    """A row: the group of rows between two rules, and what its first cells say."""

    group: str
    labels: tuple[str, ...]


class Column(NamedTuple):
    """A column: the heading that it may share with its neighbours, and its own."""

    over: str
    name: str


@dataclass(frozen=True)
class Layout:
    """A table of the paper.

    Attributes:
        rows: the rows of a setting; none if the table is not about it.
        states_backbone: whether the paper says which backbone it used; if not, there is no difference to give.
        for_others: whether results that do not compare with the paper's get a table of this layout.
    """

    number: int
    title: str
    data: str
    row_heads: tuple[str, ...]
    rows: Callable[[Setting], Sequence[RowKey]]
    column: Callable[[Setting], Column]
    note: str = ""
    states_backbone: bool = True
    for_others: bool = True


def _rows_of_objectives(setting: Setting) -> list[RowKey]:
    return _rows_by_tokenizer(setting, ("MIM", "PIM", "MaPeT"))


def _rows_of_methods(setting: Setting) -> list[RowKey]:
    return _rows_by_tokenizer(setting, (SCRATCH, "CAE", "BEiT", "MaPeT"))


def _rows_by_tokenizer(setting: Setting, methods: Sequence[str]) -> list[RowKey]:
    known = setting.method in methods and setting.metric in ("top1_finetune", "linear_probe_top1")
    if not known or not _has_usual_cut(setting):
        return []
    tokenizer = "-" if setting.tokenizer == "none" else setting.tokenizer
    return [RowKey(tokenizer, (_cited(setting.method), tokenizer))]


def _rows_of_publications(setting: Setting) -> list[RowKey]:
    if setting.metric != "top1_finetune" or not _has_usual_cut(setting):
        return []
    is_copied = setting.tokenizer.startswith("own")
    method = _cited(setting.method) if is_copied else f"{setting.method} ({setting.tokenizer})"
    return [RowKey("300" if setting.epochs == 300 else "longer", (method, str(setting.epochs)))]


def _rows_of_segmentation(setting: Setting) -> list[RowKey]:
    if setting.metric != "mIoU" or not _has_usual_cut(setting):
        return []
    panels = (setting.panel,) if setting.panel else _panels(setting.method)
    return [RowKey(panel, (_cited(setting.method), setting.tokenizer)) for panel in panels]


def _panels(method: str) -> Sequence[str]:
    """Return the panels of Table 4 in which the paper prints the method."""
    printed = (result.setting for result in paper_results() if result.setting.method == method)
    return tuple(dict.fromkeys(setting.panel for setting in printed if setting.panel))


def _rows_of_transfer(setting: Setting) -> list[RowKey]:
    known = setting.method in ("CAE", "BEiT", "MaPeT") and setting.metric.startswith("linear_probe_top1[")
    return [RowKey("", (_cited(setting.method), setting.tokenizer))] if known and _has_usual_cut(setting) else []


def _rows_of_cuts(setting: Setting) -> list[RowKey]:
    cut = setting.cutting_point
    if cut is None and setting.backbone == "ViT-B":
        cut = PAPER_CUTTING_POINTS["ViT-B"]
    if setting.method != "MaPeT" or setting.metric != "top1_finetune" or cut is None:
        return []
    ratio = _RATIOS.get(cut, "") if setting.backbone in PAPER_CUTTING_POINTS else ""
    return [RowKey("", (str(cut), ratio, setting.tokenizer))]


def _rows_of_tokenizers(setting: Setting) -> list[RowKey]:
    if setting.metric == "zero_shot_top1":
        # The paper names no CLIP; RN50x64, which it takes the features from, reaches its number.
        is_papers = "RN50x64" in setting.backbone
        return [RowKey("caption", ("CLIP features, zero-shot",))] if is_papers else []
    return [RowKey("", (setting.tokenizer,))] if setting.metric.endswith("_tokens_as_input") else []


def _column_of_metric(setting: Setting) -> Column:
    if setting.metric == "zero_shot_top1":
        return Column("Zero-shot (caption)", _TOP1)
    return Column(setting.backbone, _METRICS[setting.metric])


def _column_of_data_set(setting: Setting) -> Column:
    data = setting.metric.partition("[")[2].rstrip("]")
    return Column(_PROBE, _DATA_SETS.get(data, data))


def _has_usual_cut(setting: Setting) -> bool:
    """Return whether its cutting point is the usual one of the backbone: runs of the ablation belong to Table 6
    alone."""
    return setting.cutting_point in (None, PAPER_CUTTING_POINTS.get(setting.backbone))


def _cited(method: str) -> str:
    return f"{method} ({_CITED[method]})" if method in _CITED else method


LAYOUTS = (
    Layout(
        1,
        "Pre-training objectives: fine-tuning and linear probe",
        IMAGENET,
        ("Method", "Tokenizer"),
        _rows_of_objectives,
        _column_of_metric,
    ),
    Layout(
        2,
        "Other self-supervised methods, and training from scratch (ViT): fine-tuning and linear probe",
        IMAGENET,
        ("Method", "Tokenizer"),
        _rows_of_methods,
        _column_of_metric,
        note="The recipe from scratch (ViT): the paper gives none; these are DeiT's (Touvron et al., 2021, whose "
        "published numbers the paper's 79.8 and 81.8 are): 300 epochs, no layer decay, RandAugment, mixup, CutMix, "
        "erasing, each image three times in a step. The network is the one that is pre-trained in the other rows.",
    ),
    Layout(
        3,
        "Published methods: fine-tuning",
        IMAGENET,
        ("Method", "# Epochs"),
        _rows_of_publications,
        _column_of_metric,
        note="All rows but MaPeT's were copied by the paper from other publications, each with a tokenizer and a "
        "recipe of its own: nothing of ours belongs beside them.",
        for_others=False,  # MaPeT's rows would repeat those of Table 2
    ),
    Layout(
        4,
        "Semantic segmentation with UperNet",
        ADE20K,
        ("Method", "Tokenizer"),
        _rows_of_segmentation,
        lambda setting: Column("mIoU (%)", setting.backbone),
        note="The paper prints MaPeT twice: above among the objectives, below among the other methods.",
    ),
    Layout(
        5,
        "Transfer to other data: linear probe",
        "three data sets",
        ("Method", "Tokenizer"),
        _rows_of_transfer,
        _column_of_data_set,
        note="The paper does not say which backbone this is, so there is no difference to give; ours names its own.",
        states_backbone=False,
    ),
    Layout(
        6,
        "Reconstruction ratio of MaPeT: fine-tuning",
        IMAGENET,
        ("Cutting Point c", "Reconstruction Ratio", "Tokenizer"),
        _rows_of_cuts,
        lambda setting: Column("Top-1 Accuracy (%)", setting.backbone),
    ),
    Layout(
        7,
        "Visual tokens as the input of a classifier",
        IMAGENET,
        ("Tokenizer",),
        _rows_of_tokenizers,
        _column_of_metric,
        note="The zero-shot accuracy stands in the table's caption, which names no CLIP; RN50x64 reaches this number.",
    ),
)
