"""Reports of builds by any tokenizer, and tokenizers side by side."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.encoders.options import RawPatchOptions
from models.kmeans.options import CodebookOptions
from pipeline.data.decoding_options import DecodingOptions
from pipeline.encoding.feature_options import FeatureOptions
from pipeline.engine.errors import PipelineError
from pipeline.stages.evaluate.protocol import write_top_scores
from pipeline.stages.evaluate.scores import score, write_scores
from pipeline.stages.records import VQKDRecord
from pipeline.stages.report import build_facts, figures
from pipeline.stages.report.evaluations import find_evaluations, our_results
from pipeline.stages.report.paper_tables import paper_tables
from pipeline.stages.report.pretrainings import find_pretrainings
from pipeline.stages.report.texts import introduction, title
from pipeline.stages.report.tokenizer_builds import TokenizerBuild, encoder_words, find_tokenizer_builds
from pipeline.stages.report.vqkd_figure import vqkd_figure
from storage.artifact import Artifact, Built, Recipe
from tests.pipeline.pages import Reader
from tests.pipeline.pictures import FITTED, HISTORY, SAMPLED, TELLING, Pictures, pictures_in
from tests.stages import extract_features, fit_codebook, tokenize_images

SILENT = np.tile([0, 1, 2, 3], (16, 1))


@pytest.fixture
def pictures(tmp_path: Path) -> Pictures:
    splits = [("train", 6), ("val", 2)]
    places = [(split, name, number) for split, count in splits for name in ("cat", "dog") for number in range(count)]
    return pictures_in(tmp_path, [f"{split}/{name}/{number}.png" for split, name, number in places])


def text_of(html: str) -> str:
    return " ".join(" ".join(Reader(html).text).split())


def table_of(html: str) -> list[list[str]]:
    """Return the cells of the table of tokenizers, its head first."""
    section = html.partition("<h2>Tokenizers</h2>")[2].partition("</table>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", section)
    return [[" ".join(re.sub("<.*?>", " ", cell).split()) for cell in re.split(r"</t[hd]>", row)[:-1]] for row in rows]


def best_of(html: str) -> list[str]:
    section = html.partition("<h2>Tokenizers</h2>")[2].partition("</table>")[0]
    return re.findall(r"<b>(.*?)</b>", section)


def test_a_build_without_clustering_makes_a_page(pictures: Pictures) -> None:
    made = pictures.report(pictures.tokens("dalle"))
    html = (made.artifact.path / "report.html").read_text()
    page, text = Reader(html), text_of(html)
    assert "<h1>DALL-E tokens of photos</h1>" in html
    assert "A convolutional network sees each image as 2 × 2 patches" in text  # noqa: RUF001
    assert "“Zero-Shot Text-to-Image Generation” (Ramesh et al.)" in text
    assert page.value_of("Vocabulary") == ("5", "codes, the possible tokens")
    for absent in ("k-means", "CLIP", "Sampled vectors", "Cosine", "Tokenizers"):
        assert absent not in text
    pictures_there = {path.name for path in made.artifact.path.glob("*.png")}
    assert pictures_there == {"codebook.png", "sizes.png"}
    assert "![How often tokens occur](sizes.png)" in (made.artifact.path / "report.md").read_text()


def test_without_clustering_the_sizes_have_one_panel() -> None:
    sizes = np.array([3, 5, 0])
    assert [axes.get_title(loc="left") for axes in figures.sizes_figure(None, sizes).axes] == ["all tokens"]
    both = figures.sizes_figure(sizes, sizes).axes
    assert [axes.get_title(loc="left") for axes in both] == ["clustered sample", "all tokens"]


def test_a_vqkd_that_was_trained_shows_how_it_went(pictures: Pictures) -> None:
    made = pictures.report(pictures.fitted(), pictures.tokens("vqkd"))
    html = (made.artifact.path / "report.html").read_text()
    text = text_of(html)
    assert "<h1>VQ-KD tokens of photos</h1>" in html
    assert "the nearest of 5 codes, by cosine, is the patch's token" in text
    assert Reader(html).value_of("Cosine to the teacher") == ("0.600", "in training, after 1,300 steps")
    assert "fit_vqkd a VQ-KD, 1,300 steps, cosine 0.60" in text
    assert "How VQ-KD went" in text
    assert "network.width" in text
    with Image.open(made.artifact.path / "vqkd.png") as picture:
        assert picture.width == 1344


def test_the_cosine_is_that_of_the_validation_where_there_was_one(pictures: Pictures) -> None:
    html = pictures.html(pictures.fitted(val_cosine=0.55), pictures.tokens("vqkd"))
    assert Reader(html).value_of("Cosine to the teacher") == ("0.550", "in validation, after 1,300 steps")


def test_a_published_vqkd_has_no_training_to_show(pictures: Pictures) -> None:
    made = pictures.report(pictures.tokens("vqkd"))
    text = text_of((made.artifact.path / "report.html").read_text())
    assert "How VQ-KD went" not in text
    assert "Cosine to the teacher" not in text
    assert not (made.artifact.path / "vqkd.png").exists()


def test_the_training_of_a_vqkd_is_drawn_as_it_was_recorded() -> None:
    history = [{"step": step, "epoch": 0.0, **values} for step, values in zip((10, 20, 20), HISTORY, strict=True)]
    left, right = vqkd_figure(history, 5, VQKDRecord(**{**FITTED, "perplexity": 2.0, "used_share": 0.6})).axes
    drawn = {str(line.get_label()): line.get_xydata().tolist() for axes in (left, right) for line in axes.lines}  # type: ignore[union-attr]
    assert drawn == {
        "validation": [[20, 0.55]],
        "training": [[10, 0.2], [20, 0.6]],
        "perplexity / 5": [[10, 0.3], [20, 0.6]],
        "used tokens": [[10, 0.4], [20, 0.8]],
        "_perplexity / 5": [[20, 0.4]],  # of the tokens when it was over
        "_used tokens": [[20, 0.6]],
        "in the end": [],
    }


def test_curves_of_a_vqkd_that_were_not_measured_are_said_not_drawn() -> None:
    left, right = vqkd_figure([{"step": 1, "epoch": 0.0, "used_share": 0.5, "cosine": float("nan")}], 5).axes
    assert not left.lines
    assert [text.get_text() for text in left.texts] == ["not measured"]
    assert [line.get_label() for line in right.lines] == ["used tokens"]
    assert all(axes.texts for axes in vqkd_figure([], 5).axes)


def test_raw_patches_go_through_the_stages_of_k_clip_and_are_never_called_a_clip(pictures: Pictures) -> None:
    encoder = RawPatchOptions(image_size=64, patch_size=16)
    common = {"images": pictures.images, "source": pictures.source, "decoding": DecodingOptions()}
    work = {"workspace": pictures.workspace}
    sample = FeatureOptions(sample_fraction=1.0)
    features = extract_features(sample, encoder=encoder, **common, **work).artifact  # type: ignore[arg-type]
    codebook = fit_codebook(CodebookOptions(vocabulary=4, iterations=2), features=features, **work).artifact
    tokens = tokenize_images(encoder, codebook=codebook, **common, **work).artifact  # type: ignore[arg-type]
    html = pictures.html(features, codebook, tokens)
    text = text_of(html)
    assert "<h1>raw-patch tokens of photos</h1>" in html.replace("Raw", "raw")
    assert "k-means on the pixels of a sample of them gave 4 centroids" in text
    assert "How k-means went" in text
    assert "CLIP" not in text
    [build] = find_tokenizer_builds((features, codebook, tokens))
    assert list(build.stages) == ["extract_features", "fit_codebook", "tokenize_images"]
    assert (build.clip, build.made_from) == ("", "pixels of 16 × 16; 64 px")  # noqa: RUF001


def test_tokenizers_stand_side_by_side_the_best_first(pictures: Pictures) -> None:
    kclip, pixels, vqkd = pictures.tokens("kclip"), pictures.tokens("pixels", SILENT), pictures.tokens("vqkd")
    judged = [pictures.judged(kclip, 60), pictures.judged(vqkd, 80), pictures.judged(kclip, 90, network="vit")]
    compared = (pixels, pictures.fitted(), vqkd, *judged)
    html = pictures.html(kclip, compared=compared)
    head, *rows = table_of(html)
    assert head == [
        "Tokenizer", "Made from", "Patches", "Vocabulary", "Used tokens", "Perplexity", "Purity",
        "MLP on tokens", "ViT on tokens",
    ]  # fmt: skip
    trained = "trained on these images, teacher ViT-B-16, openai; 64 px"
    perplexity = f"{kclip.summary['perplexity']:.1f}"
    assert [row[:7] for row in rows] == [
        ["VQ-KD", trained, "2 × 2", "5", "5 100 %", perplexity, "75.0"],  # noqa: RUF001
        ["k-CLIP", "a CLIP; 64 px", "2 × 2", "5", "5 100 %", perplexity, "75.0"],  # noqa: RUF001
        ["raw patches", "pixels of 32 × 32; 64 px", "2 × 2", "5", "4 80 %", "4.0", "50.0"],  # noqa: RUF001
    ]
    assert [[cell.partition(" ")[0] for cell in row[7:]] for row in rows] == [
        ["80.0", "–"],  # noqa: RUF001
        ["60.0", "90.0"],
        ["–", "–"],  # noqa: RUF001
    ]
    assert best_of(html) == ["75.0", "80.0", "75.0"]  # a ViT that judged one tokenizer alone makes none the best
    assert re.fullmatch(r"80\.0 \[7\d\.\d, 8\d\.\d\]", rows[0][7])


def test_the_section_says_what_its_numbers_are_and_what_the_other_tokenizers_do(pictures: Pictures) -> None:
    kclip, pixels = pictures.tokens("kclip"), pictures.tokens("pixels", SILENT)
    html = pictures.html(kclip, compared=(pixels, pictures.judged(kclip, 60)))
    text = text_of(html)
    assert "<h1>k-CLIP and raw-patch tokens of photos</h1>" in html
    assert "It is one of 2 tokenizers" in text
    assert "raw patches says what clustering alone gives" in text
    assert "over the 12 labelled images of the split train" in text
    assert "would have about 50 %" in text
    assert "raw patches: Each image is cut into 2 × 2 patches." in text  # noqa: RUF001
    assert "k-CLIP:" not in text  # the introduction has it
    assert "What k-CLIP tokens look like" in text


def test_the_markdown_page_has_the_same_table(pictures: Pictures) -> None:
    kclip, vqkd = pictures.tokens("kclip"), pictures.tokens("vqkd", SILENT)
    made = pictures.report(kclip, compared=(vqkd, pictures.judged(vqkd, 80), pictures.judged(kclip, 60)))
    markdown = (made.artifact.path / "report.md").read_text()
    section = markdown.partition("## Tokenizers")[2].partition("## What")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
    assert re.fullmatch(r"[|:-]+", rows[1])
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| VQ-KD", "| k-CLIP"]
    assert "| 50.0 | **80.0**" in rows[2]
    assert "| **75.0** | 60.0" in rows[3]


def test_several_seeds_of_a_tokenizer_are_one_mean_in_an_interval_of_all(pictures: Pictures) -> None:
    kclip, vqkd = pictures.tokens("kclip"), pictures.tokens("vqkd")
    seeds = [pictures.judged(kclip, correct, seed=seed) for seed, correct in enumerate((40, 60))]
    _, first, _ = table_of(pictures.html(kclip, compared=(vqkd, *seeds)))
    found = re.fullmatch(r"50\.0 \[(\S+), (\S+)\] 2 seeds", first[7])
    assert found
    assert float(found[1]) < 40 < 60 < float(found[2])


def test_without_labels_or_evaluations_tokenizers_keep_their_order_without_measures(tmp_path: Path) -> None:
    bare = pictures_in(tmp_path, [f"{number:02}.png" for number in range(16)])
    head, *rows = table_of(bare.html(bare.tokens("dalle"), compared=(bare.tokens("kclip"),)))
    assert head[-1] == "Perplexity"
    assert [row[0] for row in rows] == ["DALL-E", "k-CLIP"]


def test_one_tokenizer_alone_is_not_compared(pictures: Pictures) -> None:
    kclip = pictures.tokens("kclip")
    text = text_of(pictures.html(kclip, compared=(kclip, pictures.judged(kclip, 60))))
    assert "Tokenizers" not in text
    assert "What tokens look like" in text


def test_tokens_of_other_images_are_not_compared(pictures: Pictures, tmp_path: Path) -> None:
    other = pictures_in(tmp_path / "other", [f"train/owl/{number:02}.png" for number in range(16)])
    compared = (pictures.tokens("vqkd"), other.tokens("dalle"))
    rows = table_of(pictures.html(pictures.tokens("kclip"), compared=compared))[1:]
    assert [row[0] for row in rows] == ["k-CLIP", "VQ-KD"]


def test_an_evaluation_of_tokens_that_were_not_given_is_refused(pictures: Pictures) -> None:
    kclip, vqkd = pictures.tokens("kclip"), pictures.tokens("vqkd")
    with pytest.raises(PipelineError, match=rf"judged the tokens {vqkd.digest[:12]}, given are {kclip.digest[:12]}"):
        pictures.report(kclip, compared=(pictures.judged(vqkd, 50),))


@pytest.mark.parametrize(("kind", "name"), [("vqkd", "VQ-KD"), ("dalle", "DALL-E")])
def test_evaluations_of_tokens_stand_in_their_tokenizers_row_of_the_papers_table_7(
    pictures: Pictures, kind: str, name: str
) -> None:
    tokens = pictures.tokens(kind)
    imagenet = replace(pictures.images, summary={**pictures.images.summary, "train_images": 1_281_167, "classes": 1000})
    judged = [pictures.judged(tokens, 60), pictures.judged(tokens, 70, network="vit")]
    given = ((), {"index_images": imagenet}, find_tokenizer_builds([tokens]))
    standard = {one.recipe.options["protocol"]: {"options": one.recipe.options["options"]} for one in judged}
    tables = paper_tables(our_results(judged, *given, preset="paper", standard=standard))
    [seventh] = [table for table in tables if table.number == 7]
    ours = [
        (row.labels, column, cell.ours[0].value)
        for row in seventh.rows
        for column, cell in zip(seventh.columns, row.cells, strict=True)
        if cell.ours and cell.paper
    ]
    assert ours == [((name,), ("MLP", "Top-1 Acc. (%)"), 60.0), ((name,), ("ViT-T", "Top-1 Acc. (%)"), 70.0)]


def test_stages_and_options_of_every_tokenizer_are_listed(pictures: Pictures) -> None:
    kclip, vqkd, fitted = pictures.tokens("kclip"), pictures.tokens("vqkd"), pictures.fitted()
    text = text_of(pictures.html(kclip, compared=(fitted, vqkd)))
    assert "tokenize_images tokens of 16 images (k-CLIP)" in text
    assert "tokenize_images tokens of 16 images (VQ-KD)" in text
    assert "a VQ-KD, 1,300 steps, cosine 0.60 (VQ-KD)" in text
    assert "fit_vqkd, VQ-KD network.width 8" in text
    for artifact in (kclip, vqkd, fitted):
        assert artifact.fingerprint in text


def test_another_tokenizer_beside_it_makes_another_report(pictures: Pictures) -> None:
    kclip, vqkd, fitted = pictures.tokens("kclip"), pictures.tokens("vqkd"), pictures.fitted()
    prints = [pictures.report(kclip, compared=beside).artifact for beside in ((), (vqkd,), (fitted, vqkd))]
    assert len({artifact.fingerprint for artifact in prints}) == 3
    assert pictures.report(kclip, compared=(fitted, vqkd)).cached


def test_tokens_find_the_vqkd_that_made_them(pictures: Pictures) -> None:
    fitted, other, vqkd = pictures.fitted(), pictures.fitted(val_cosine=0.3), pictures.tokens("vqkd")

    def found(tokens: Artifact, *given: Artifact) -> list[str]:
        [build] = find_tokenizer_builds((*given, tokens))
        return [artifact.fingerprint for stage, artifact in build.stages.items() if stage == "fit_vqkd"]

    assert found(vqkd, fitted) == [fitted.fingerprint]
    assert found(vqkd, fitted, other) == []  # nothing says which
    noted = replace(vqkd, notes={"encoder": f"/data/fit_vqkd/{other.fingerprint}/vqkd.pth"})
    assert found(noted, fitted, other) == [other.fingerprint]
    assert found(replace(vqkd, notes={"encoder": "vqkd_encoder_base_decoder_3x768x12_clip"}), fitted) == []
    assert found(pictures.tokens("kclip"), fitted) == []


def zero_shot(pictures: Pictures) -> Artifact:
    def fill(folder: Path) -> Built:
        right = np.arange(100) < 70
        write_scores(folder, [score("top1", right, "")], {"top1": right})
        return Built({"top1": 70.0, "val_images": 100, "what": "zero_shot clip"}, {})

    return pictures.artifact("evaluate", {"protocol": "zero_shot", "options": {}}, fill)


@pytest.mark.parametrize(
    ("kind", "encoder", "named"),
    [
        ("kclip", "RN50x64-quickgelu, openai", "RN50x64-quickgelu, openai"),
        ("kclip", "local-dir:/data/train_demo_clip/0123", "the demo's CLIP"),
        ("pixels", "raw patches of 16 px", "CLIP"),
        ("dalle", "", "CLIP"),
    ],
)
def test_zero_shot_is_the_clips_whose_features_were_clustered(
    pictures: Pictures, kind: str, encoder: str, named: str
) -> None:
    tokens, evaluations = pictures.tokens(kind), find_evaluations([zero_shot(pictures)])
    features = replace(tokens, stage="extract_features", summary=SAMPLED, notes={"encoder": encoder})
    stages = {"tokenize_images": tokens} | ({"extract_features": features} if encoder else {})
    given = ({"index_images": pictures.images}, [TokenizerBuild(stages)])
    [result] = our_results(evaluations.values(), (), *given, preset="demo", standard={})
    assert (result.metric, result.backbone) == ("zero_shot_top1", named)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("kclip", "A frozen CLIP sees each image as 2 × 2 patches."),  # noqa: RUF001
        ("random", "A network of CLIP's shape, but with random weights,"),
        ("pixels", "Each image is cut into 2 × 2 patches."),  # noqa: RUF001
        ("vqkd", "BEiT v2"),
        ("dalle", "Zero-Shot Text-to-Image Generation"),
        ("invented", "Each image becomes 2 × 2 tokens of 5."),  # noqa: RUF001
    ],
)
def test_the_introduction_says_what_the_tokenizer_is(pictures: Pictures, kind: str, words: str) -> None:
    builds = find_tokenizer_builds([pictures.tokens(kind)])
    assert words in introduction(builds, ())


def test_the_title_names_the_tokenizers_whose_tokens_were_learned(pictures: Pictures) -> None:
    kclip, vqkd, random = (pictures.tokens(kind) for kind in ("kclip", "vqkd", "random"))
    builds = find_tokenizer_builds((kclip, vqkd, random))
    stages = {"index_images": pictures.images}
    assert title(stages, builds, ()) == "k-CLIP, VQ-KD and random-encoder tokens of photos"
    options = {"objective": "mim", "backbone": {"name": "vit_demo"}, "training": {"epochs": 1}, "seed": 0}
    made_from = Recipe("pretrain", 1, options, {"tokens": vqkd.digest})
    learned = find_pretrainings([replace(vqkd, stage="pretrain", recipe=made_from)])
    assert title(stages, builds, learned) == "Pre-training on VQ-KD tokens of photos"


def test_the_demos_notes_fit_the_tokenizer(pictures: Pictures) -> None:
    facts = {"train_images": 12, "val_images": 4}
    drawing = Recipe("make_demo_images", 1, {"limit": 16, "image_size": 64})
    drawn = replace(pictures.images, stage="make_demo_images", summary=facts, recipe=drawing)
    knows = {"zero_shot_accuracy": 0.9, "steps": 10, "val_images": 4}
    trained = replace(pictures.images, stage="train_demo_clip", summary=knows, notes={"seconds": 60.0})
    stages = {"make_demo_images": drawn, "train_demo_clip": trained, "fit_vqkd": pictures.fitted()}
    said = " ".join(build_facts.demo_notes({**stages, "tokenize_images": pictures.tokens("vqkd")}, "vqkd"))
    assert "the paper uses ImageNet-1k at 224 px" in said
    assert "it stands in for OpenAI's ViT-B/16" in said
    assert "VQ-KD was trained for 1,300 steps" in said
    whole = pictures.tokens("dalle", vocabulary=8192)
    said = " ".join(build_facts.demo_notes({"make_demo_images": drawn, "tokenize_images": whole}, "dalle"))
    assert "ImageNet-1k at 112 px" in said
    assert "The vocabulary" not in said  # it has the paper's size


@pytest.mark.parametrize(
    ("encoder", "words"),
    [
        ("ViT-B-16, openai", "ViT-B-16, openai"),
        ("local-dir:/data/train_demo_clip/0123456789abcdef", "the demo's CLIP"),
        ("local-dir:/home/somebody/my-clip", "a local CLIP, my-clip"),
        ("", ""),
    ],
)
def test_encoders_are_named_without_the_path_that_they_lie_at(encoder: str, words: str) -> None:
    assert encoder_words(encoder) == words


@pytest.mark.parametrize(
    ("changed", "shown"),
    [
        ({"value": float("nan")}, "recorded as nan %"),
        ({"value": 250.0}, "recorded as 250 %"),
        ({"value": 2.24, "low": 2.67, "high": 4.41}, "its recorded interval [2.7, 4.4] does not hold it"),
        ({"low": float("nan"), "high": float("nan")}, "its recorded interval [nan, nan] does not hold it"),
        ({"remark": "of 5 classes, always right"}, "of 5 classes, always right"),
    ],
)
def test_an_odd_score_costs_no_page_and_is_named_in_its_cell(
    pictures: Pictures, changed: dict[str, object], shown: str
) -> None:
    tokens = pictures.tokens("kclip")
    sound = pictures.judged(tokens, 60)

    def fill(folder: Path) -> Built:
        right = np.arange(100) < 50
        write_scores(folder, [replace(score("top1", right, ""), **changed)], {"top1": right})  # type: ignore[arg-type]
        return Built({"top1": 50.0, "val_images": 100, "what": "tokens_as_input_vit"}, {})

    options = {"protocol": "tokens_as_input_vit", "options": {"network": "vit"}, "tokens": tokens.digest}
    odd = pictures.artifact("evaluate", {**options, "odd": str(changed)}, fill)
    made = pictures.report(tokens, compared=(sound, odd)).artifact
    assert shown in text_of((made.path / "report.html").read_text())
    assert shown in (made.path / "report.md").read_text().replace("\\", "")
    assert "60.0000" in (made.path / "results.csv").read_text()


def test_a_report_of_one_judged_image_of_one_class_is_whole(tmp_path: Path) -> None:
    one = pictures_in(tmp_path, ["train/cat/0.png", "val/cat/0.png"])
    tokens = one.tokens("kclip", np.array([[0, 1, 2, 3], [0, 0, 0, 0]]))

    def fill(folder: Path) -> Built:
        write_top_scores(folder, torch.ones(1, 2, dtype=torch.bool), 1, "")
        return Built({"top1": 100.0, "val_images": 1, "what": "tokens_as_input kclip"}, {})

    options = {"protocol": "tokens_as_input", "options": {"network": "mlp"}, "tokens": tokens.digest}
    text = text_of(
        one.html(tokens, compared=(one.artifact("evaluate", options, fill), one.tokens("vqkd", TELLING[:2])))
    )
    assert "of 1 class, always right" in text
    assert "2 in 1 class" in text
    assert "1 classes" not in text
