"""Codebook figures: what is counted, which patches are shown and outlined, and what a wrong request gets."""

import csv
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.commands.codebook import parse_tokens, write_codebook_pages
from pipeline.data.demo_options import DemoImagesOptions
from pipeline.data.source_options import ImageSourceOptions
from pipeline.engine.errors import USER_ERRORS
from pipeline.engine.settings import Settings
from pipeline.engine.workspace import Workspace
from pipeline.stages.report.codebook_panels import TokenPanel
from pipeline.stages.report.codebook_pictures import MATCH, MISMATCH, UNKNOWN, patch_box, tile_side
from pipeline.stages.report.codebook_section import CodebookSection
from pipeline.stages.report.token_examples import Occurrence, choose_examples, evenly_spread
from pipeline.stages.report.token_statistics import (
    CountedImages,
    TokenStatistics,
    count_tokens,
    images_to_count,
    most_used_tokens,
    purest_tokens,
    spread_tokens,
)
from storage.artifact import Artifact, Built, Recipe, build_artifact
from storage.image_index import ImageIndex, ImageStatus
from storage.token_store import NO_TOKEN, write_token_store
from tests.builds import build, make_photos, small_config
from tests.commands import mapet
from tests.pipeline.pages import Reader
from tests.stages import index_images, make_demo_images

MARGIN = 3
SIDE = 64  # of the square that the invented tokenizer sees


def all_of(labels: np.ndarray) -> CountedImages:
    return CountedImages("train", np.arange(len(labels)), labelled=bool((labels >= 0).all()))


def counted(tokens: Sequence[Sequence[int]], labels: Sequence[int], vocabulary: int) -> TokenStatistics:
    known = np.array(labels, np.int32)
    return count_tokens(np.array(tokens, np.uint16), all_of(known), labels=known, vocabulary=vocabulary)


def test_purity_is_the_share_of_patches_in_images_of_the_majority_class() -> None:
    statistics = counted([[0, 0, 1], [0, 1, 1], [0, 2, 1], [2, 2, 2]], [0, 0, 1, 2], 4)
    assert statistics.patches.tolist() == [4, 4, 4, 0]
    assert statistics.images.tolist() == [3, 3, 2, 0]
    assert statistics.majority.tolist() == [0, 0, 2, -1]
    assert statistics.matches.tolist() == [3, 3, 3, 0]
    np.testing.assert_array_equal(statistics.purity, [0.75, 0.75, 0.75, np.nan])
    assert statistics.overall_purity == 9 / 12


def test_of_two_equally_frequent_classes_the_first_is_the_majority() -> None:
    statistics = counted([[0, 0], [0, 0]], [3, 1], 1)
    assert (statistics.majority.tolist(), statistics.purity.tolist()) == ([1], [0.5])


def test_counts_are_right_beyond_one_block_of_images() -> None:
    random = np.random.default_rng(0)
    tokens = random.integers(0, 50, (70_000, 3)).astype(np.uint16)
    labels = random.integers(0, 7, len(tokens)).astype(np.int32)
    expected = np.zeros((50, 7), np.int64)
    np.add.at(expected, (tokens, labels[:, None]), 1)
    statistics = count_tokens(tokens, all_of(labels), labels=labels, vocabulary=50)
    np.testing.assert_array_equal(statistics.patches, expected.sum(axis=1))
    np.testing.assert_array_equal(statistics.majority, expected.argmax(axis=1))
    np.testing.assert_array_equal(statistics.matches, expected.max(axis=1))
    assert statistics.images[17] == (tokens == 17).any(axis=1).sum()


def statistics_of(patches: list[int], images: list[int], matches: list[int]) -> TokenStatistics:
    return TokenStatistics(1000, *map(np.array, (patches, images, [0] * len(patches), matches)))


def test_a_token_of_few_images_is_not_among_the_purest() -> None:
    # 100 % pure but in one image; 80 %; 90 %; unused; 100 % in too few images
    statistics = statistics_of([30, 100, 100, 0, 90], [1, 60, 60, 0, 49], [30, 80, 90, 0, 90])
    assert purest_tokens(statistics, 3) == [2, 1, 4]
    assert purest_tokens(statistics, 9) == [2, 1, 4, 0]


def test_of_equally_pure_tokens_the_more_frequent_comes_first_then_the_lower_id() -> None:
    statistics = statistics_of([100, 200, 100, 200], [60] * 4, [50, 100, 50, 100])
    assert purest_tokens(statistics, 4) == [1, 3, 0, 2]
    assert most_used_tokens(statistics, 3) == [1, 3, 0]


def test_spread_tokens_come_from_all_over_the_ranking_and_are_used() -> None:
    patches = np.random.default_rng(0).permutation(np.r_[np.zeros(80, int), 1:121])
    chosen = spread_tokens(statistics_of(patches.tolist(), patches.tolist(), patches.tolist()), 12)
    assert patches[chosen].tolist() == list(range(115, 0, -10))
    assert len(spread_tokens(statistics_of([0, 3, 1], [0, 1, 1], [0, 3, 1]), 12)) == 2


def index_of(splits: Sequence[str], labels: Sequence[int]) -> ImageIndex:
    import pyarrow as pa

    count = len(splits)
    columns: dict[str, list[object]] = {
        "name": [f"{number:03d}.png" for number in range(count)],
        "split": list(splits),
        "label": list(labels),
        **{name: [""] * count for name in ("container", "key")},
        **{name: [0] * count for name in ("offset", "row_group", "row_in_group", "bytes")},
    }
    return ImageIndex.build(pa.table(columns), classes=("a", "b"), source_kind="folder", images_per_shard=9)


def test_counted_are_the_labelled_valid_images_of_the_split_with_most_of_them() -> None:
    index = index_of(["test"] * 4 + ["train"] * 4 + ["val"] * 2, [-1] * 4 + [0, 1, 1, -1] + [0, 1])
    status = np.full(10, ImageStatus.VALID, np.uint8)
    status[5] = ImageStatus.DAMAGED
    images = images_to_count(index, status)
    assert (images.split, images.labelled, images.rows.tolist()) == ("train", True, [4, 6])
    images = images_to_count(index, status, split="test")
    assert (images.labelled, images.rows.tolist()) == (False, [0, 1, 2, 3])


def test_chosen_images_are_evenly_spread() -> None:
    assert evenly_spread(np.arange(100), 4).tolist() == [12, 37, 62, 87]
    assert evenly_spread(np.arange(3), 5).tolist() == [0, 1, 2]
    assert evenly_spread(np.arange(0), 5).tolist() == []


def test_shown_places_hold_the_token_in_different_images_matches_first() -> None:
    random = np.random.default_rng(0)
    tokens = random.integers(0, 6, (80, 9)).astype(np.uint16)
    labels = random.integers(0, 3, 80).astype(np.int32)
    statistics = count_tokens(tokens, all_of(labels), labels=labels, vocabulary=6)
    for example in choose_examples([4, 1], tokens, all_of(labels), labels=labels, statistics=statistics, pictures=5):
        assert [place.matches for place in example.occurrences] == [True] * 5 + [False] * 5
        assert len({place.row for place in example.occurrences}) == 10
        for place in example.occurrences:
            assert tokens[place.row, place.patch] == example.token
            assert place.matches == (labels[place.row] == statistics.majority[example.token])


def test_of_several_patches_of_an_image_the_middle_one_is_shown() -> None:
    tokens, labels = np.array([[1, 1, 0, 1, 0, 1, 1]], np.uint16), np.array([-1], np.int32)
    statistics = count_tokens(tokens, all_of(labels), labels=labels, vocabulary=2)
    (example,) = choose_examples([1], tokens, all_of(labels), labels=labels, statistics=statistics, pictures=3)
    assert example.occurrences == (Occurrence(0, 3, None),)


@dataclass(frozen=True)
class Store:
    """A token store of an invented tokenizer, on real image files."""

    images: Path
    root: Path
    tokens: Artifact

    def pages(self, to: Path, **request: object) -> CodebookSection:
        return write_codebook_pages(self.tokens.path, to, data_root=self.root, **request)  # type: ignore[arg-type]


def make_store(folder: Path, names: Sequence[str], tokens: Sequence[Sequence[int]], grid: tuple[int, int]) -> Store:
    """Return five tokens; pictures of noise, by turns wide and high."""
    for number, name in enumerate(sorted(names)):
        noise = np.random.default_rng(number).integers(0, 256, (64, 96, 3), dtype=np.uint8)
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise if number % 2 else noise.transpose(1, 0, 2)).save(path)
    workspace = Workspace(Settings(data_root=folder / "root", device="cpu", workers=0))
    return write_store(workspace, folder / "images", np.array(tokens, np.uint16), grid)


def write_store(workspace: Workspace, images: Path, tokens: np.ndarray, grid: tuple[int, int]) -> Store:
    indexed = index_images(ImageSourceOptions(path=str(images)), workspace=workspace).artifact
    status = np.where((tokens == NO_TOKEN).all(axis=1), ImageStatus.DAMAGED, ImageStatus.VALID)
    attributes = {
        "tokenizer": "invented",
        "vocabulary": 5,
        "grid": list(grid),
        "image_index": indexed.digest,
        "encoder": {"image_size": SIDE, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"},
        "decoding": {"preset": "exact", "max_pixels": 1_000_000},
    }

    def fill(folder: Path) -> Built:
        parts = [(np.arange(len(tokens)), tokens, status.astype(np.uint8))]
        write_token_store(folder, parts, images=len(tokens), patches=tokens.shape[1], attributes=attributes)
        return Built({}, {})

    layout = workspace.settings.layout
    made, _ = build_artifact(layout, Recipe("tokenize_images", 1, {"tokenizer": "invented"}), fill)
    return Store(images, layout.root, made)


# Four cats, two dogs, one bad dog; 2 x 3 patches. Token 1: 5 patches of cats, 2 of a dog; token 4 nowhere.
NAMES = [*(f"train/cat/{number}.png" for number in range(4)), *(f"train/dog/{number}.png" for number in range(3))]
TOKENS = [
    [0, 1, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 1],
    [1, 0, 2, 2, 2, 1],
    [3, 3, 1, 3, 3, 3],
    [2, 2, 2, 2, 2, 2],
    [0, 0, 0, 1, 1, 0],
    [NO_TOKEN] * 6,
]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path, NAMES, TOKENS, (2, 3))


@pytest.fixture
def unlabelled(tmp_path: Path) -> Store:
    return make_store(tmp_path, ["a.png", "b.png", "c.png"], [[0, 1, 1, 1], [2, 2, 2, 0], [2, 2, 2, 2]], (2, 2))


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5))


def drawn_tiles(png: bytes, panel: TokenPanel) -> list[np.ndarray]:
    """Return the tiles of a panel, cut out of its PNG file: found by the outline's colour below the heading's mark."""
    with Image.open(BytesIO(png)) as file:
        picture = np.asarray(file.convert("RGB"))
    tiles, top = [], 0
    for group in panel.groups:
        for column, tile in enumerate(group.tiles):
            expected = np.asarray(tile.picture)
            left = 16 + column * (len(expected) + 8)
            places = range(top, len(picture) - len(expected) + 1)
            cuts = (picture[y : y + len(expected), left : left + len(expected)] for y in places)
            at, cut = next((y, cut) for y, cut in zip(places, cuts, strict=True) if np.array_equal(cut, expected))
            tiles.append(cut)
        top = at + 1
    return tiles


def test_a_picture_is_the_tokenizers_crop_with_its_patch_outlined_in_its_colour(store: Store, tmp_path: Path) -> None:
    section = store.pages(tmp_path / "out", tokens=[1])
    (panel,) = section.panels
    tiles = drawn_tiles((tmp_path / "out/token_0001.png").read_bytes(), panel)
    side = tile_side((2, 3))
    shown = [(0, 1, MATCH), (1, 5, MATCH), (2, 5, MATCH), (3, 2, MATCH), (5, 4, MISMATCH)]  # row, patch
    assert len(tiles) == len(shown)
    for tile, (row, patch, colour) in zip(tiles, shown, strict=True):
        with Image.open(store.images / NAMES[row]) as file:
            pixels = np.asarray(file)
        square = pixels[:, 16:80] if pixels.shape[1] == 96 else pixels[16:80]  # shorter side 64: nothing is resized
        enlarged = np.asarray(Image.fromarray(square).resize((side, side), Image.Resampling.NEAREST))
        left, top, right, bottom = patch_box(patch, (2, 3), side)
        inner = tile[MARGIN + top : MARGIN + bottom, MARGIN + left : MARGIN + right]
        np.testing.assert_array_equal(inner, enlarged[top:bottom, left:right])
        ring = (tile == rgb(colour)).all(axis=2)
        assert ring[top, left : right + 2 * MARGIN].all()
        assert ring[top : bottom + 2 * MARGIN, right + 2 * MARGIN - 1].all()
        other = MISMATCH if colour == MATCH else MATCH
        assert not (tile == rgb(other)).all(axis=2).any()


def test_a_panel_says_class_purity_patches_and_share_of_images(store: Store, tmp_path: Path) -> None:
    (panel,) = store.pages(tmp_path / "out", tokens=[1]).panels
    assert panel.title == "Token 1: cat"
    assert panel.detail == "purity 71.4 %, 7 patches, in 83.3 % of the images"
    matches, mismatches = panel.groups
    assert (matches.title, mismatches.title) == ("5 patches in images of cat", "2 patches in images of other classes")
    assert [[tile.label for tile in group.tiles] for group in panel.groups] == [["cat"] * 4, ["dog"]]
    assert [tile.name for tile in panel.groups[1].tiles] == ["train/dog/1.png"]


def test_the_page_is_whole_in_one_file_and_names_classes_under_pictures(store: Store, tmp_path: Path) -> None:
    section = store.pages(tmp_path / "out")
    html = (tmp_path / "out/index.html").read_text()
    page = Reader(html)
    links = [address for address in page.addresses if not address.startswith("data:image/jpeg;base64,")]
    assert len(page.addresses) - len(links) == section.patches_shown
    assert sorted(links) == sorted(path.name for path in (tmp_path / "out").iterdir() if path.name != "index.html")
    assert html.index("5 patches in images of cat") < html.index("2 patches in images of other classes")
    assert html.count("<figcaption>dog</figcaption>") == sum(
        tile.label == "dog" for panel in section.panels for group in panel.groups for tile in group.tiles
    )
    assert "the 6 labelled images of the split train" in html


def test_the_table_has_all_tokens(store: Store, tmp_path: Path) -> None:
    store.pages(tmp_path / "out", tokens=[0])
    with (tmp_path / "out/codebook.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["token"] for line in lines] == ["0", "1", "2", "3", "4"]
    assert lines[1] == {"token": "1", "patches": "7", "images": "5", "majority_class": "cat", "purity": "0.7143"}
    assert lines[4] == {"token": "4", "patches": "0", "images": "0", "majority_class": "", "purity": ""}


def test_the_same_request_writes_the_same_bytes(store: Store, tmp_path: Path) -> None:
    for name in ("one", "two"):
        store.pages(tmp_path / name)
    written = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert len(written[0]) == 4 + 2
    assert written[0] == written[1]


def test_a_token_that_no_image_holds_is_said_to_be_unused(store: Store, tmp_path: Path) -> None:
    (panel,) = store.pages(tmp_path / "out", tokens=[4]).panels
    assert (panel.title, panel.detail, list(panel.groups)) == ("Token 4", "occurs in none of the 6 images", [])


def test_pictures_and_tokens_are_limited(store: Store, tmp_path: Path) -> None:
    section = store.pages(tmp_path / "out", count=2, pictures=1)
    assert [[len(group.tiles) for group in panel.groups] for panel in section.panels] == [[1, 1], [1, 1]]


def test_without_labels_the_most_used_tokens_are_shown_and_nothing_is_a_mismatch(
    unlabelled: Store, tmp_path: Path
) -> None:
    section = unlabelled.pages(tmp_path / "out", count=2)
    assert [panel.title for panel in section.panels] == ["Token 2", "Token 1"]
    assert [group.colour for panel in section.panels for group in panel.groups] == [UNKNOWN] * 2
    html = (tmp_path / "out/index.html").read_text()
    assert "purity" not in html
    assert MISMATCH not in html
    assert (tmp_path / "out/codebook.csv").read_text().splitlines()[1] == "0,2,2,,"


def test_images_that_were_moved_are_found_when_told_where(store: Store, tmp_path: Path) -> None:
    store.images.rename(tmp_path / "elsewhere")
    with pytest.raises(USER_ERRORS, match="--source PATH"):
        store.pages(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert store.pages(tmp_path / "out", source=tmp_path / "elsewhere").panels


def test_the_demos_images_move_with_their_data_root(tmp_path: Path) -> None:
    workspace = Workspace(Settings(data_root=tmp_path / "root", device="cpu", workers=0))
    images = make_demo_images(DemoImagesOptions(limit=20, renderings=1), workspace=workspace).artifact
    count = sum(1 for _ in images.path.rglob("*.png"))
    made = write_store(workspace, images.path, np.ones((count, 4), np.uint16), (2, 2))
    (tmp_path / "root").rename(tmp_path / "moved")
    moved = tmp_path / "moved/tokenize_images" / made.tokens.path.name
    (panel,) = write_codebook_pages(moved, tmp_path / "out", data_root=tmp_path / "root").panels
    assert panel.groups[0].tiles


def test_the_index_may_lie_in_another_data_root(store: Store, tmp_path: Path) -> None:
    copy = tmp_path / "copied/tokens"
    shutil.copytree(store.tokens.path, copy)
    assert write_codebook_pages(copy, tmp_path / "out", data_root=store.root).panels
    with pytest.raises(USER_ERRORS, match=r"image index \w+, .* is not in"):
        write_codebook_pages(copy, tmp_path / "no", data_root=tmp_path / "other")


def test_a_directory_that_exists_stays_as_it_is(store: Store, tmp_path: Path) -> None:
    assert store.pages(tmp_path / "pages").panels
    before = sorted((tmp_path / "pages").iterdir())
    with pytest.raises(USER_ERRORS, match="exists; name a directory that does not"):
        store.pages(tmp_path / "pages")
    assert sorted((tmp_path / "pages").iterdir()) == before


def test_a_folder_of_somebody_else_beside_the_pages_stays(store: Store, tmp_path: Path) -> None:
    (tmp_path / "out" / "pages.partial").mkdir(parents=True)
    (tmp_path / "out" / "pages.partial" / "thesis.tex").write_text("precious")
    assert store.pages(tmp_path / "out" / "pages").panels
    assert (tmp_path / "out" / "pages.partial" / "thesis.tex").read_text() == "precious"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["pages", "pages.partial"]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"tokens": [5]}, "token 5 does not exist: the vocabulary has 5"),
        ({"split": "val"}, "no images of split 'val'; the image index has train"),
        ({"count": 0}, "--purest 0: expected 1 or more"),
        ({"pictures": 0}, "--images 0: expected 1 or more"),
        ({"source": Path("/nowhere")}, "--source /nowhere is no directory"),
    ],
)
def test_what_cannot_be_shown_is_named(store: Store, tmp_path: Path, request_: dict[str, object], message: str) -> None:
    with pytest.raises(USER_ERRORS, match=message):
        store.pages(tmp_path / "out", **request_)
    assert not (tmp_path / "out").exists()


def test_an_image_that_changed_or_went_is_named(store: Store, tmp_path: Path) -> None:
    image = store.images / NAMES[2]
    image.write_bytes(image.read_bytes() + b"more")
    with pytest.raises(USER_ERRORS, match=r"train/cat/2\.png: had \d+ bytes .* has \d+ now"):
        store.pages(tmp_path / "out")
    image.unlink()
    with pytest.raises(USER_ERRORS, match=r"train/cat/2\.png: FileNotFoundError"):
        store.pages(tmp_path / "out")


def test_only_intact_token_stores_are_shown(store: Store, tmp_path: Path) -> None:
    (index,) = (store.root / "index_images").iterdir()
    for wrong, message in ((tmp_path, "no artifact"), (index, "an artifact of index_images, expected one of tokeni")):
        with pytest.raises(USER_ERRORS, match=message):
            write_codebook_pages(wrong, tmp_path / "out", data_root=store.root)
    for damaged in (index, store.tokens.path):
        file = max(
            (path for path in damaged.rglob("*") if path.name != "artifact.json"), key=lambda p: p.stat().st_size
        )
        file.write_bytes(file.read_bytes()[:-1] + b"!")
        with pytest.raises(USER_ERRORS, match="the bytes changed"):
            store.pages(tmp_path / "out")


@pytest.mark.parametrize("text", ["", "3,", "a", "-1", "1 2", "²"])
def test_ids_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(USER_ERRORS, match="expected ids with commas"):
        parse_tokens(text)


def test_ids_are_read_once_each_in_their_order() -> None:
    assert parse_tokens("17, 3,17") == (17, 3)


def test_the_command_shows_the_tokens_of_a_build(tmp_path: Path) -> None:
    config = small_config(make_photos(tmp_path / "photos", train=12, val=3), tmp_path / "clip")
    made = build(config, tmp_path / "root")["tokenize_images"].artifact
    words = ("codebook", str(made.path), "--purest", "3", "--images", "4", "--to", str(tmp_path / "out"))
    environment = {"MAPET_DATA_ROOT": str(tmp_path / "root"), "MAPET_DEVICE": "cpu"}
    said = mapet(tmp_path / "said", *words, environment=environment)
    assert said.code == 0, said.err
    shown = re.findall(r"^  Token (\d+): (?:bloom|roof), purity [\d.]+ %, \d+ patches, in", said.out, re.M)
    assert len(shown) == 3
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == sorted(
        f"token_{int(token):04d}.png" for token in shown
    )
    again = mapet(tmp_path / "again", *words, environment=environment)
    assert (again.code, again.out, len(again.err.splitlines())) == (2, "", 1)
    assert again.err.startswith("mapet: error: ")
