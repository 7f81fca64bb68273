import re
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.clip.options import ClipOptions
from models.kmeans.options import CodebookOptions
from models.kmeans.statistics import codebook_statistics
from pipeline.data.decoding_options import DecodingOptions
from pipeline.data.demo_options import DemoImagesOptions
from pipeline.data.source_options import ImageSourceOptions
from pipeline.encoding.feature_options import FeatureOptions
from pipeline.engine.settings import Settings
from pipeline.engine.workspace import StageResult, Workspace
from pipeline.stages.report import build_facts, codebook_pictures, figures
from pipeline.stages.report.build_content import BuildContent
from pipeline.stages.report.codebook_pictures import MATCH, MISMATCH, UNKNOWN, draw_tile
from pipeline.stages.report.page_templates import escape_markdown
from pipeline.stages.report.token_examples import Occurrence
from storage.artifact import Artifact, Recipe
from storage.token_store import NO_TOKEN
from tests.pipeline.pages import Reader, write_pictures
from tests.stages import extract_features, fit_codebook, index_images, make_demo_images, report, tokenize_images
from tests.tiny_clip import write_tiny_clip

NASTY_NAME = "<script>alert(1)</script> a_b|c.png"


@dataclass(frozen=True)
class Reported:
    """A build with its report."""

    result: StageResult
    artifacts: tuple[Artifact, ...]
    source: ImageSourceOptions
    workspace: Workspace

    @property
    def html(self) -> str:
        return (self.result.artifact.path / "report.html").read_text()

    @property
    def markdown(self) -> str:
        return (self.result.artifact.path / "report.md").read_text()

    @property
    def content(self) -> BuildContent:
        return BuildContent({artifact.stage: artifact for artifact in self.artifacts})

    def again(self) -> StageResult:
        return report(self.artifacts, source=self.source, decoding=DecodingOptions(), workspace=self.workspace)


def build_and_report(folder: Path, source: ImageSourceOptions, *first: Artifact, vocabulary: int = 8) -> Reported:
    workspace = Workspace(Settings(data_root=folder / "data", workers=0, device="cpu"))
    decoding = DecodingOptions()
    clip = ClipOptions(model=write_tiny_clip(folder / "clip"), dilate_last_stage=True, precision="fp32")
    images = index_images(source, workspace=workspace).artifact
    pixels = {"images": images, "source": source, "decoding": decoding, "workspace": workspace}
    features = extract_features(FeatureOptions(sample_fraction=1.0), encoder=clip, **pixels).artifact
    options = CodebookOptions(vocabulary=vocabulary, iterations=3)
    codebook = fit_codebook(options, features=features, workspace=workspace).artifact
    tokens = tokenize_images(clip, codebook=codebook, **pixels).artifact
    artifacts = (*first, images, features, codebook, tokens)
    result = report(artifacts, source=source, decoding=decoding, workspace=workspace)
    return Reported(result, artifacts, source, workspace)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Reported:
    """14 images of two classes in train, 2 in val, and two bad ones."""
    folder = tmp_path_factory.mktemp("labelled")
    names = [f"train/{name}/{number}.png" for name in ("cat", "dog") for number in range(7)]
    write_pictures(folder / "images", [*names, "val/cat/0.png", "val/dog/0.png"])
    (folder / "images/train/cat" / NASTY_NAME.replace("/", "")).write_bytes(b"no picture")
    (folder / "images/val/dog/empty.png").write_bytes(b"")
    return build_and_report(folder, ImageSourceOptions(path=str(folder / "images")))


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Reported:
    """One image without a label."""
    folder = tmp_path_factory.mktemp("single")
    write_pictures(folder / "images", ["only.png"])
    return build_and_report(folder, ImageSourceOptions(path=str(folder / "images")), vocabulary=4)


def test_the_page_shows_the_numbers_of_the_artifacts(labelled: Reported) -> None:
    page, content = Reader(labelled.html), labelled.content
    tokens = content.store.load()
    statistics = codebook_statistics(np.bincount(tokens[tokens != NO_TOKEN].reshape(-1), minlength=8))
    assert page.value_of("Images") == ("18", "in 2 classes")
    assert page.value_of("Bad images")[0] == "2"
    assert page.value_of("Patches per image") == ("16", "4 × 4, 256 tokens in all")  # noqa: RUF001
    assert page.value_of("Vocabulary")[0] == "8"
    assert page.value_of("Used tokens")[0] == str(len(np.unique(tokens[tokens != NO_TOKEN])))
    assert page.value_of("Perplexity")[0] == f"{statistics.perplexity:.1f}"
    assert page.value_of("Most frequent token")[0] == build_facts.share(statistics.largest_share)
    assert page.value_of("Sampled vectors") == ("224", "of 240 planned, 100 % of the patches of train")


def test_both_pages_name_every_stage_with_its_fingerprint(labelled: Reported) -> None:
    text = " ".join(Reader(labelled.html).text)
    for artifact in labelled.artifacts:
        for page in (text, labelled.markdown.replace("\\", "")):
            assert artifact.stage in page
            assert artifact.fingerprint in page
    assert "MLflow" not in text  # nothing tracked this build


def test_the_html_page_nests_and_asks_for_nothing_from_outside(labelled: Reported) -> None:
    page = Reader(labelled.html)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert len(page.addresses) >= 8 + 2 * 3  # a strip for each token, light and dark figures
    assert all(address.startswith("data:image/") for address in page.addresses)
    assert not re.search(r"https?:|url\(|@import", labelled.html)


def test_the_markdown_page_refers_to_the_pictures_beside_it(labelled: Reported) -> None:
    named = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", labelled.markdown)
    assert named == ["codebook.png", "iterations.png", "sizes.png", "bad_images.png"]
    for name in named:
        with Image.open(labelled.result.artifact.path / name) as picture:
            assert min(picture.size) > 100


def test_every_row_of_a_markdown_table_has_as_many_cells_as_its_head(labelled: Reported) -> None:
    tables = re.findall(r"(?:^\|.*\n)+", labelled.markdown, re.MULTILINE)
    assert len(tables) == 5
    for table in tables:
        cells = {len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}
        assert len(cells) == 1
        assert re.fullmatch(r"[|:-]+", table.splitlines()[1])


def test_bad_images_are_listed_with_their_reason_and_harmless_names(labelled: Reported) -> None:
    text = " ".join(Reader(labelled.html).text)
    assert "train/cat/<script>alert(1)<script> a_b|c.png" in text
    assert "<script>" not in labelled.html
    assert "the file is empty" in text
    assert "1 not an image, 1 empty" in re.sub(r"\s+", " ", text)
    assert r"\<script\>alert(1)\<script\> a\_b\|c.png" in labelled.markdown


@pytest.mark.parametrize(("matches", "colour"), [(True, MATCH), (False, MISMATCH), (None, UNKNOWN)])
@pytest.mark.parametrize("grid", [(4, 4), (2, 3), (14, 14)])
def test_the_outline_surrounds_exactly_its_patch(grid: tuple[int, int], matches: bool | None, colour: str) -> None:
    side, margin = codebook_pictures.tile_side(grid), 3
    assert side >= 128
    assert side % grid[0] == side % grid[1] == 0
    rgb = tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5))
    for patch in range(grid[0] * grid[1]):
        tile = draw_tile(np.zeros((64, 64, 3), np.uint8), Occurrence(0, patch, matches), grid)
        row, column = divmod(patch, grid[1])
        height, width = side // grid[0], side // grid[1]
        expected = np.zeros((side + 2 * margin, side + 2 * margin), bool)
        expected[row * height : (row + 1) * height + 2 * margin, column * width : (column + 1) * width + 2 * margin] = (
            True
        )
        expected[
            margin + row * height : margin + (row + 1) * height, margin + column * width : margin + (column + 1) * width
        ] = False
        np.testing.assert_array_equal((np.asarray(tile) == rgb).all(axis=2), expected)


def test_an_image_that_can_no_longer_be_read_is_a_gray_tile() -> None:
    tile = np.asarray(draw_tile(None, Occurrence(0, 0, True), (4, 4)))
    assert (tile[3:-3, 3:-3] == 128).all()


def test_one_image_without_a_label_makes_a_page(single: Reported) -> None:
    page = Reader(single.html)
    assert page.value_of("Images") == ("1", "without labels")
    assert page.value_of("Bad images")[0] == "0"
    text = " ".join(page.text)
    assert "Images without tokens" not in text
    assert "Green" not in text
    assert "Images that hold it" in text
    assert "This is the demo" not in text
    assert not (single.result.artifact.path / "bad_images.png").exists()


def test_the_demo_says_what_is_small_about_it(tmp_path: Path) -> None:
    workspace = Workspace(Settings(data_root=tmp_path / "data", workers=0, device="cpu"))
    pictures = make_demo_images(DemoImagesOptions(limit=20, renderings=1), workspace=workspace).artifact
    made = build_and_report(tmp_path, ImageSourceOptions(path=str(pictures.path)), pictures)
    for page in (made.html, made.markdown):
        assert "This is the demo" in page
        assert "20 renderings of 20 handwritten digits" in page
        assert "64 px wide" in page
        assert "The vocabulary has 8 tokens" in page
    assert "k-CLIP tokens of the embedded demo" in made.html


def test_the_demo_says_how_well_its_own_clip_does(labelled: Reported) -> None:
    summary, notes = {"zero_shot_accuracy": 0.9234, "steps": 10, "val_images": 4}, {"seconds": 61.0}
    trained = Artifact(Path(), "train_demo_clip", "", "", Recipe("train_demo_clip", 1, {}), {}, summary, notes)
    said = " ".join(build_facts.demo_notes({**labelled.content.stages, "train_demo_clip": trained}))
    assert "for 1 min 1 s (zero-shot accuracy 92.3 %)" in said


def test_the_same_artifacts_are_reported_once(labelled: Reported) -> None:
    again = labelled.again()
    assert again.cached
    assert again.artifact.digest == labelled.result.artifact.digest


def test_figures_are_drawn_from_odd_histories() -> None:
    nan = float("nan")
    unmeasured = {"restart": 0, "iteration": 0, "inertia": 5e12, "perplexity": nan, "used_share": nan}
    restarts = [
        {"restart": restart, "iteration": step, "inertia": 0.1, "perplexity": 7.0, "used_share": 0.9}
        for restart in (0, 1)
        for step in (0, 1)
    ]
    sizes = np.array([0, 0, 1, 3_000_000, 12], np.int64)
    drawn = [figures.iterations_figure(history, 8) for history in ([unmeasured], restarts)]
    drawn += [
        figures.sizes_figure(sizes, sizes[3:], figures.DARK),
        figures.bad_images_figure({"empty": 3, "damaged": 1}),
    ]
    for figure in drawn:
        with Image.open(BytesIO(figures.png(figure))) as picture:
            assert picture.width == 1344


def test_a_missing_measurement_is_said_not_drawn() -> None:
    nan = float("nan")
    history = [{"restart": 0, "iteration": 0, "inertia": 1.0, "perplexity": nan, "used_share": nan}]
    right = figures.iterations_figure(history, 8).axes[1]
    assert not right.lines
    assert [text.get_text() for text in right.texts] == ["not measured in this k-means mode"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0 %"),
        (1.0, "100 %"),
        (0.5, "50 %"),
        (0.9234, "92.3 %"),
        (8191 / 8192, "99.99 %"),
        (0.99996, "99.996 %"),
        (0.00021, "0.021 %"),
        (1e-9, "less than 0.0001 %"),
        (1 - 1e-9, "more than 99.9999 %"),
    ],
)
def test_only_all_of_it_is_100_percent(value: float, text: str) -> None:
    assert build_facts.share(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (8.14, "8.1 s"), (54.4, "54 s"), (59.7, "1 min 0 s"), (134, "2 min 14 s"), (7920, "2 h 12 min")],
)
def test_durations_have_two_units_at_most(seconds: float, text: str) -> None:
    assert build_facts.duration(seconds) == text


def test_markdown_shows_names_as_they_are() -> None:
    assert escape_markdown("a_b*c|<d>\n`e`") == r"a\_b\*c\|\<d\> \`e\`"
