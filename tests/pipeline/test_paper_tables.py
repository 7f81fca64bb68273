"""The paper's tables beside ours: every number of the paper in its cell, ours beside it only where it compares."""

import csv
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest

from pipeline.engine.errors import PipelineError
from pipeline.paper import results as paper_results_module
from pipeline.stages.report.accuracy_figure import accuracy_bars, accuracy_picture
from pipeline.stages.report.figures import DARK, LIGHT
from pipeline.stages.report.our_results import OurResult
from pipeline.stages.report.paper_section import (
    CSV_COLUMNS,
    PaperSection,
    paper_section,
    render_section_html,
    render_section_markdown,
    section_csv,
)

FILE = Path(paper_results_module.__file__).parent / "results.csv"
HEADINGS = {
    "top1_finetune": "Top-1 Acc. (%)",
    "linear_probe_top1": "Linear Probe Acc. (%)",
    "linear_probe_top1[stanford_cars]": "Stanford-Cars",
    "linear_probe_top1[food101]": "Food-101",
    "linear_probe_top1[fgvc_aircraft]": "FGVC-Aircraft",
    "top1_tokens_as_input": "Top-1 Acc. (%)",
    "top5_tokens_as_input": "Top-5 Acc. (%)",
}
OURS = OurResult(
    method="MaPeT",
    tokenizer="k-CLIP",
    backbone="ViT-T",
    metric="linear_probe_top1",
    value=62.9,
    interval=(62.4, 63.3),
    seeds=1,
    preset="table1",
    data="ImageNet-1k",
    run="0123456789abcdef",
    link="http://localhost:5000/#/runs/0123456789abcdef",
    epochs=300,
)
DEMO = replace(OURS, backbone="ViT demo", value=71.2, interval=(69.0, 73.0), preset="demo", data="demo", epochs=4)
Place = tuple[str, str, tuple[str, ...], tuple[str, ...]]  # table, panel of Table 4, row, column


class Tables(HTMLParser):
    """What a reader sees of tables whose titles say "Table N": the numbers of the paper, each with its place.

    Reads nothing but the rendered page: titles, headings with their spans, groups of rows, first cells.
    """

    def __init__(self, html: str, wanted: str = "paper") -> None:
        super().__init__()
        self.wanted, self.found, self.bold = wanted, dict[Place, str](), set[Place]()
        self.title = self.text = ""
        self.group, self.tag_classes = 0, list[str]()
        self.head_rows: list[list[tuple[str, int]]] = []
        self.labels: list[str] = []
        self.column, self.span, self.is_head, self.reading = 0, 1, False, False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        facts = dict(attrs)
        if tag == "h4":
            self.text, self.group, self.head_rows = "", 0, []
        elif tag == "thead":
            self.is_head = True
        elif tag == "tbody":
            self.group += 1
        elif tag == "tr":
            self.labels, self.column = [], -1
            if self.is_head:
                self.head_rows.append([])
        elif tag == "th":
            self.text, self.span = "", 0 if "rowspan" in facts else int(facts.get("colspan") or 1)
        elif tag == "td":
            self.column += 1
        elif tag == "span" and facts.get("class") == self.wanted:
            self.reading, self.text = True, ""
        elif tag == "br":
            self.text += " "
        elif tag == "b" and self.reading:
            self.bold.add(self.place())

    def handle_endtag(self, tag: str) -> None:
        if tag == "h4":
            self.title = self.text
        elif tag == "thead":
            self.is_head = False
        elif tag == "th" and self.is_head and self.span:
            self.head_rows[-1].append((self.text, self.span))
        elif tag == "th" and not self.is_head:
            self.labels.append(self.text)
        elif tag == "span" and self.reading:
            assert self.place() not in self.found
            self.found[self.place()] = self.text
            self.reading = False

    def handle_data(self, data: str) -> None:
        self.text += data

    def place(self) -> Place:
        column = tuple([text for text, span in row for _ in range(span)][self.column] for row in self.head_rows[:2])
        number = re.search(r"Table (\d)", self.title)
        assert number
        panel = ("top", "bottom")[self.group - 1] if number[1] == "4" else ""
        return (
            number[1],
            panel,
            tuple(label.partition(" (")[0] if number[1] != "3" else label for label in self.labels),
            column,
        )


def expected_place(row: dict[str, str]) -> Place:
    """Return where the paper prints a line of the file, written down here a second time, table by table."""
    table, method, tokenizer, backbone = row["table"], row["method"], row["tokenizer"], row["backbone"]
    heading = HEADINGS.get(row["metric"], "")
    if table in "12":
        return table, "", (method, tokenizer.replace("none", "-")), (backbone, heading)
    if table == "3":
        epochs = re.findall(r"(\d+) pretrain", row["notes"])[0]
        return (
            table,
            "",
            (method if tokenizer.startswith("own") else f"{method} ({tokenizer})", epochs),
            (backbone, heading),
        )
    if table == "4":
        return table, re.findall(r"(\w+) panel", row["notes"])[0], (method, tokenizer), ("mIoU (%)", backbone)
    if table == "5":
        return table, "", (method, tokenizer), ("Linear Probe Acc. (%)", heading)
    if table == "6":
        cut, ratio = re.findall(r"c=(\d+); reconstruction ratio (\d+%)", row["notes"])[0]
        return table, "", (cut, ratio, tokenizer), ("Top-1 Accuracy (%)", backbone)
    if method == "CLIP zero-shot":
        return table, "", ("CLIP features, zero-shot",), ("Zero-shot (caption)", "Top-1 Acc. (%)")
    return table, "", (tokenizer,), (backbone, heading)


def rows_of_the_file() -> list[dict[str, str]]:
    with FILE.open(newline="") as lines:
        return list(csv.DictReader(lines))


def without_citation(place: Place) -> Place:
    table, panel, labels, column = place
    return table, panel, (re.sub(r" \([^()]*\d{4}[a-z]?\)$", "", labels[0]), *labels[1:]), column


def printed(html: str, wanted: str = "paper") -> dict[Place, str]:
    found = Tables(html, wanted).found
    places = {without_citation(place): text for place, text in found.items() if text != "–"}  # noqa: RUF001
    assert len(places) == sum(1 for text in found.values() if text != "–")  # noqa: RUF001
    return places


def html_of(*ours: OurResult) -> str:
    return render_section_html(paper_section(ours))


def cell_of(html: str, value: str) -> str:
    """Return the text of the cell whose ours is `value`."""
    (cell,) = (cell for cell in re.findall(r"<td.*?</td>", html, re.DOTALL) if f'class="ours">{value}<' in cell)
    return " ".join(re.sub(r"<[^>]*>", " ", cell).split())


@pytest.mark.parametrize("ours", [(), (OURS,), (DEMO,)])
def test_every_number_of_the_paper_stands_in_its_cell_of_the_page(ours: tuple[OurResult, ...]) -> None:
    expected = {expected_place(row): row["value"] for row in rows_of_the_file()}
    assert len(expected) == 137
    assert printed(html_of(*ours)) == expected


def test_two_numbers_of_the_paper_that_changed_places_are_noticed() -> None:
    page, expected = html_of(), {expected_place(row): row["value"] for row in rows_of_the_file()}
    numbers = list(re.finditer(r'(?<=class="paper">)[\d.]+(?=<)', page))
    for first, second in ((0, 1), (2, 40), (len(numbers) - 2, len(numbers) - 1)):
        one, other = numbers[first], numbers[second]
        assert one[0] != other[0]
        swapped = page[: one.start()] + other[0] + page[one.end() : other.start()] + one[0] + page[other.end() :]
        assert printed(swapped) != expected


def test_bold_numbers_are_those_that_the_paper_prints_in_bold() -> None:
    bold = {without_citation(place) for place in Tables(html_of()).bold}
    assert bold == {expected_place(row) for row in rows_of_the_file() if "bold" in row["notes"]}


def test_the_markdown_tables_hold_the_same_numbers_in_the_same_order() -> None:
    def numbers(lines: list[str]) -> list[str]:
        return [cell for line in lines for cell in re.findall(r"(?<=\| )\**(\d+\.\d)\**(?= (?:\||$))", line)]

    text = render_section_markdown(paper_section(()))
    tables = re.split(r"^#### Table ", text, flags=re.MULTILINE)[1:]
    assert [int(table[0]) for table in tables] == [1, 2, 3, 4, 5, 6, 7]
    for table in tables:
        lines = [line for line in table.splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
        expected = [text for place, text in printed(html_of()).items() if place[0] == table[0]]
        assert numbers(lines[2:]) == expected


def test_the_csv_file_has_a_line_for_each_number_of_the_paper_and_each_of_ours() -> None:
    lines = list(csv.DictReader(StringIO(section_csv(paper_section([OURS, DEMO])))))
    key = ("table", "method", "tokenizer", "backbone", "metric")
    theirs = Counter((*(line[name] for name in key), line["paper"]) for line in lines if line["paper"])
    assert theirs == Counter((*(row[name] for name in key), row["value"]) for row in rows_of_the_file())
    ours = [line for line in lines if line["ours"]]
    assert [(line["table"], line["paper"], line["difference"]) for line in ours] == [
        ("1", "62.5", "0.4000"),
        ("2", "62.5", "0.4000"),
        ("1", "", ""),
        ("2", "", ""),
    ]
    assert [ours[0][name] for name in ("low", "high", "seeds", "preset", "run")] == [
        "62.4000", "63.3000", "1", "table1", OURS.run,
    ]  # fmt: skip
    assert tuple(lines[0]) == CSV_COLUMNS


def ours_like(row: dict[str, str]) -> OurResult:
    """Return what we would have measured for a line of the file."""
    transfer = re.fullmatch(r"linear_probe_top1\[(\w+)\]", row["metric"])
    data = {"mIoU": "ADE20K"}.get(row["metric"], transfer[1] if transfer else "ImageNet-1k")
    cut = re.search(r"cutting point c=(\d+)", row["notes"])
    return OurResult(
        method="tokens" if row["method"].startswith("classifier") else row["method"],
        tokenizer=row["tokenizer"],
        backbone="ViT-B" if row["backbone"] == "not stated" else row["backbone"],
        metric=row["metric"],
        value=float(row["value"]) + 0.2,
        interval=None,
        seeds=1,
        preset="ours",
        data=data,
        pretraining_data="" if data == "ImageNet-1k" else "ImageNet-1k",
        epochs=None if row["method"].startswith("classifier") else 300,
        cutting_point=int(cut[1]) if cut and cut[1] != "60" else None,  # 60 is ViT-B's usual one, nothing to name
    )


@pytest.mark.parametrize("tokenizer", ["VQ-KD", "DALL-E"])
def test_every_number_of_the_paper_by_another_tokenizer_gets_ours_beside_it(tokenizer: str) -> None:
    rows = [row for row in rows_of_the_file() if row["tokenizer"] == tokenizer]
    assert {row["table"] for row in rows} == set({"VQ-KD": "1234567", "DALL-E": "7"}[tokenizer])
    page = html_of(*map(ours_like, rows))
    expected = {expected_place(row): f"{float(row['value']) + 0.2:.1f}" for row in rows}
    assert printed(page, "ours") == expected
    stated = [place for place in expected if place[0] != "5"]  # the paper names no backbone in Table 5
    assert printed(page, "difference") == dict.fromkeys(stated, "+0.2") | dict.fromkeys(expected.keys() - stated, "")


def test_ours_stands_beside_the_papers_number_of_the_same_setting_and_nowhere_else() -> None:
    place = (("MaPeT", "k-CLIP"), ("ViT-T", "Linear Probe Acc. (%)"))
    assert printed(html_of(OURS), "ours") == {(table, "", *place): "62.9" for table in "12"}


def test_a_cell_says_difference_interval_noise_seeds_preset_and_links_the_run() -> None:
    page = html_of(replace(OURS, method="PIM", value=60.2, interval=(59.5, 60.9)))
    assert cell_of(page, "60.2") == "59.7 60.2 +0.5 [59.5, 60.9] within noise 1 seed, table1 01234567"
    assert f'<a href="{OURS.link}">' in page
    lower = replace(OURS, method="MIM", value=58.04, interval=(57.0, 59.0), run="", link="")
    assert cell_of(html_of(lower), "58.0") == "60.4 58.0 \u22122.4 [57.0, 59.0] beyond noise 1 seed, table1"


def test_without_an_interval_nothing_is_said_about_noise() -> None:
    page = html_of(replace(OURS, method="PIM", value=59.7, interval=None))
    assert cell_of(page, "59.7") == "59.7 59.7 0.0 no interval 1 seed, table1 01234567"


def test_seeds_of_a_cell_become_a_mean_with_spread_and_a_result_counts_once() -> None:
    runs = [replace(OURS, method="PIM", value=value, interval=(value - 1, value + 1)) for value in (58.0, 60.2)]
    cell = cell_of(html_of(*runs, runs[0]), "59.1")
    assert "59.7 59.1 \u22120.6 [57.0, 61.2] within noise mean of 2 seeds, 58.0 to 60.2" in cell
    weighted = [replace(runs[0], seeds=3, value=58.0), runs[1]]
    assert "mean of 4 seeds" in cell_of(html_of(*weighted), "58.5")


def test_results_of_different_presets_are_not_averaged() -> None:
    page = html_of(*(replace(OURS, method="PIM", value=60.0 + n, interval=None, preset=f"try{n}") for n in range(2)))
    assert cell_of(page, "60.0") == cell_of(page, "61.0")
    assert "60.0 +0.3 no interval 1 seed, try0" in cell_of(page, "60.0")
    assert "61.0 +1.3 no interval 1 seed, try1" in cell_of(page, "61.0")


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"data": "demo"}, "demo"),
        ({"data": "ImageNet-100"}, "ImageNet-100"),
        ({"pretraining_data": "demo"}, "ImageNet-1k, pre-trained on demo"),
        ({"epochs": 20}, "ImageNet-1k, 20 epochs of pre-training"),
        ({"epochs": None}, "ImageNet-1k, unknown epochs of pre-training"),
        ({"departures": ("fine-tuned for 10 epochs",)}, "ImageNet-1k, fine-tuned for 10 epochs"),
        ({"metric": "mIoU", "data": "ADE20K"}, "ADE20K, pre-trained on ADE20K"),
    ],
)
def test_what_was_measured_otherwise_gets_tables_of_its_own(changed: dict[str, object], why: str) -> None:
    section = paper_section([replace(OURS, **changed)])  # type: ignore[arg-type]
    assert not section.has_comparable
    assert list(section.apart) == [why]
    html, markdown = render_section_html(section), render_section_markdown(section)
    apart, paper = html.split('<details class="papers"')
    assert f"Measured on {why}: not comparable with the paper" in apart
    assert 'class="ours">62.9<' in apart
    for text in (">paper<", 'class="paper"', 'class="difference"', "noise"):
        assert text not in apart
    assert 'class="ours"' not in paper
    assert "(+" not in markdown
    assert section_csv(section).count("+") == 0


def test_demo_and_comparable_results_never_share_a_table() -> None:
    section = paper_section([OURS, DEMO, replace(DEMO, backbone="ViT-T")])
    for table in (*section.beside_paper, *section.apart["demo"]):
        data = {one.data for row in table.rows for cell in row.cells for ours in cell.ours for one in ours.results}
        assert data <= ({"ImageNet-1k"} if table.is_papers else {"demo"})
    assert all(cell.paper is None for table in section.apart["demo"] for row in table.rows for cell in row.cells)
    assert [column.over for column in section.apart["demo"][0].columns] == ["ViT-T", "ViT demo"]


def test_rows_and_columns_of_our_own_tables_keep_the_papers_order() -> None:
    results = [
        replace(DEMO, method=method, metric=metric, tokenizer=tokenizer)
        for tokenizer in ("random encoder", "k-CLIP")
        for metric in ("linear_probe_top1", "top1_finetune")
        for method in ("MaPeT", "PIM", "MIM")
    ]
    first = paper_section(results).apart["demo"][0]
    assert [row.labels for row in first.rows] == [
        (method, tokenizer) for tokenizer in ("k-CLIP", "random encoder") for method in ("MIM", "PIM", "MaPeT")
    ]
    assert [column.name for column in first.columns] == ["Top-1 Acc. (%)", "Linear Probe Acc. (%)"]


def test_scratch_is_the_papers_vit_and_may_fill_what_the_paper_left_blank() -> None:
    scratch = replace(OURS, method="scratch", tokenizer="none", epochs=None)
    page = html_of(replace(scratch, metric="top1_finetune", value=73.9, interval=None), scratch)
    assert cell_of(page, "73.9").startswith("73.7 73.9 +0.2")
    assert cell_of(page, "62.9").startswith("– 62.9 [62.4, 63.3] 1 seed")  # noqa: RUF001
    assert "beyond" not in cell_of(page, "62.9")


def test_the_page_says_whose_recipe_from_scratch_is() -> None:
    section = paper_section([OURS])
    for page in (render_section_html(section), render_section_markdown(section)):
        text = " ".join(page.split()).replace("&#39;", "'")
        assert "the paper gives none; these are DeiT's" in text


def test_cutting_points_of_the_ablation_fill_table_6_alone_and_the_usual_one_both() -> None:
    base = replace(OURS, backbone="ViT-B", tokenizer="VQ-KD", metric="top1_finetune", value=84.0, interval=None)
    place = ("98", "50%", "VQ-KD"), ("Top-1 Accuracy (%)", "ViT-B")
    assert list(printed(html_of(replace(base, cutting_point=98)), "ours")) == [("6", "", *place)]
    tables = [place[0] for place in printed(html_of(base), "ours")]
    assert tables == [place[0] for place in printed(html_of(replace(base, cutting_point=60)), "ours")]
    assert tables == ["1", "2", "3", "6"]


def test_transfer_names_our_backbone_and_no_difference_as_the_paper_names_none() -> None:
    transfer = replace(
        OURS, tokenizer="VQ-KD", metric="linear_probe_top1[food101]", data="food101", pretraining_data="ImageNet-1k"
    )
    page = html_of(transfer, replace(transfer, backbone="ViT-B", value=87.0, interval=(86.0, 88.0)))
    assert cell_of(page, "87.0").startswith("86.9 62.9 [62.4, 63.3] 1 seed, ViT-T, table1")
    assert "87.0 [86.0, 88.0] 1 seed, ViT-B, table1" in cell_of(page, "87.0")


def test_tokens_as_input_and_zero_shot_compare_without_pretraining() -> None:
    tokens = replace(OURS, method="any", backbone="MLP", metric="top1_tokens_as_input", value=72.0, interval=None)
    tokens = replace(tokens, epochs=None)
    clip = replace(tokens, tokenizer="none", backbone="RN50x64", metric="zero_shot_top1", value=73.6)
    page = html_of(tokens, clip)
    assert cell_of(page, "72.0").startswith("72.8 72.0 \u22120.8")
    assert cell_of(page, "73.6").startswith("73.6 73.6 0.0")
    other = paper_section([replace(clip, backbone="ViT-B-32")])
    assert not other.has_comparable
    assert len(other.further) == 1


def test_what_no_table_has_a_place_for_is_listed_once() -> None:
    section = paper_section([OURS, replace(DEMO, metric="knn_top1"), replace(OURS, tokenizer="DALL-E", value=62.5)])
    assert [one.results[0].metric for one in section.further] == ["knn_top1", "linear_probe_top1"]
    listed = render_section_html(section).split("in none of the paper")[1]
    assert "<code>knn_top1</code>" in listed
    assert "DALL-E" in listed
    assert "62.9" not in listed
    assert "| MaPeT | k-CLIP | ViT demo | knn\\_top1 | demo | 71.2 |" in render_section_markdown(section)


def test_names_and_links_cannot_break_the_page() -> None:
    odd = replace(DEMO, tokenizer="<b>|x", link="javascript:alert(1)", preset="a|b")
    section = paper_section([odd, replace(odd, method="MIM", link="http://h/a b)|c")])
    html, markdown = render_section_html(section), render_section_markdown(section)
    assert "&lt;b&gt;|x" in html
    assert "javascript" not in html + markdown
    assert "(http://h/a%20b%29%7Cc)" in markdown
    assert "\\<b\\>\\|x" in markdown


def test_a_value_outside_its_interval_is_refused_but_rounding_is_not() -> None:
    assert replace(OURS, value=100.0, interval=(99.9999999, 99.9999999)).value == 100
    with pytest.raises(PipelineError, match=r"0\.629 with the interval \(62\.4, 63\.3\).*expected percent"):
        replace(OURS, value=0.629)


def test_the_section_says_how_much_of_the_paper_has_been_measured() -> None:
    assert paper_section([OURS]).coverage.startswith("2 of the paper's 137 numbers")
    page = html_of(DEMO)
    assert "No result of ours" in page
    assert page.index("not comparable") < page.index("The paper's Tables 1 to 7")


def test_bars_are_drawn_as_measured_with_intervals_a_panel_per_protocol_and_data() -> None:
    seeds = [replace(OURS, value=value, interval=(value - 1, value + 1)) for value in (62.0, 63.0)]
    scratch = replace(OURS, method="scratch", tokenizer="none", value=20.0, interval=None, epochs=None)
    figure = accuracy_bars([scratch, *seeds, DEMO])
    imagenet, demo = figure.axes
    assert [axes.get_title(loc="left") for axes in (imagenet, demo)] == [
        "Linear probe, top-1 (%)\nImageNet-1k",
        "Linear probe, top-1 (%)\ndemo",
    ]
    assert [bar.get_width() for bar in imagenet.patches] == [62.5, 20.0]  # type: ignore[attr-defined]
    assert [label.get_text() for label in imagenet.get_yticklabels()] == ["MaPeT, k-CLIP", "scratch"]
    (error,) = imagenet.collections
    assert error.get_segments()[0][:, 0].tolist() == [61.0, 64.0]  # type: ignore[attr-defined]
    assert [bar.get_width() for bar in demo.patches] == [71.2]  # type: ignore[attr-defined]


def test_the_figure_has_a_light_and_a_dark_picture_and_none_without_results() -> None:
    picture = accuracy_picture([DEMO])
    assert picture.light != picture.dark
    assert all(part.startswith(b"\x89PNG") for part in (picture.light, picture.dark))
    assert accuracy_bars([DEMO], DARK).get_facecolor() != accuracy_bars([DEMO], LIGHT).get_facecolor()
    section: PaperSection = paper_section(())
    assert section.figure is None
