"""Reports of builds with pre-trainings: curves, table, words, identity."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from PIL import Image

from models.objectives import OBJECTIVES
from models.objectives.colours import objective_colour
from pipeline.data.decoding_options import DecodingOptions
from pipeline.data.source_options import ImageSourceOptions
from pipeline.engine.errors import PipelineError
from pipeline.engine.settings import Settings
from pipeline.engine.workspace import StageResult, Workspace
from pipeline.stages.report import build_facts
from pipeline.stages.report.figures import DARK, LIGHT, Palette
from pipeline.stages.report.pretraining_figure import BlindGuess, curve_colour, curves_figure
from pipeline.stages.report.pretraining_section import pretraining_section, seeds_behind, split_options, what_is_small
from pipeline.stages.report.pretrainings import Pretraining, find_pretrainings
from pipeline.stages.report.tokenizer_builds import find_tokenizer_builds
from pipeline.training.history import read_history
from storage.artifact import Artifact, Recipe
from tests.builds import build, make_photos, small_config
from tests.pipeline.pages import Reader
from tests.stages import TokenizedImages, report
from tests.trainings import small_pretraining

BLIND = BlindGuess("k-CLIP", 3.2, 0.1)


@dataclass(frozen=True)
class Compared:
    """A build, and pre-trainings on its tokens: MIM, PIM, MaPeT, and MaPeT with another seed."""

    build: tuple[Artifact, ...]
    pretrained: tuple[Artifact, ...]
    source: ImageSourceOptions
    tokenized: TokenizedImages
    root: Path

    def report(self, *pretrained: Artifact) -> StageResult:
        workspace = Workspace(Settings(data_root=self.root, device="cpu", workers=0))
        images = {"source": self.source, "decoding": DecodingOptions()}
        return report(self.build, compared=pretrained, **images, workspace=workspace)

    @property
    def tokens(self) -> Artifact:
        return self.tokenized.tokens


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    folder = tmp_path_factory.mktemp("compared")
    config, root = small_config(make_photos(folder / "photos", train=9, val=2), folder / "clip"), folder / "root"
    made = build(config, root)
    tokenized = TokenizedImages(made["index_images"].artifact, config.images, made["tokenize_images"].artifact)
    runs = (("mim", 0), ("pim", 0), ("mapet", 0), ("mapet", 1))
    pretrained = tuple(
        small_pretraining(tokenized, root, f"pretrain.objective={objective}", f"pretrain.seed={seed}").artifact
        for objective, seed in runs
    )
    build_artifacts = tuple(result.artifact for result in made.results if result.stage != "report")
    return Compared(build_artifacts, pretrained, config.images, tokenized, root)


@pytest.fixture(scope="module")
def reported(compared: Compared) -> Artifact:
    return compared.report(*compared.pretrained).artifact


@pytest.fixture(scope="module")
def page(reported: Artifact) -> str:
    return " ".join(" ".join(Reader((reported.path / "report.html").read_text()).text).split())


def drawn_lines(pretrainings: Sequence[Pretraining], panel: int) -> list[Line2D]:
    return [line for line in curves_figure(pretrainings, [BLIND]).axes[panel].lines if len(line.get_xdata())]


@pytest.mark.parametrize(("panel", "quantity"), [(0, "token_loss"), (1, "token_accuracy")])
def test_every_pretraining_is_drawn_as_it_was_recorded(compared: Compared, panel: int, quantity: str) -> None:
    pretrainings = find_pretrainings(compared.pretrained)
    *curves, reference = drawn_lines(pretrainings, panel)
    assert len(curves) == 2 * len(compared.pretrained)
    expected = [
        [(entry["epoch"], entry[name]) for entry in read_history(one.artifact.path) if name in entry]
        for one in pretrainings
        for name in (quantity, f"val_{quantity}")
    ]
    assert [list(map(tuple, line.get_xydata().tolist())) for line in curves] == expected
    assert list(reference.get_ydata()) == [getattr(BLIND, quantity)] * 2


def test_training_and_validation_differ_in_style_and_objectives_in_colour(compared: Compared) -> None:
    *curves, _ = drawn_lines(find_pretrainings(compared.pretrained), 0)
    training, validation = curves[::2], curves[1::2]
    assert {line.get_linestyle() for line in training}.isdisjoint({line.get_linestyle() for line in validation})
    assert [line.get_color() for line in training] == [line.get_color() for line in validation]
    assert len({line.get_color() for line in training}) == 4


def test_the_legend_names_every_pretraining_and_covers_no_curve(compared: Compared) -> None:
    figure = curves_figure(find_pretrainings(compared.pretrained), [BLIND])
    figure.draw_without_rendering()
    (legend,) = figure.legends
    named = [text.get_text() for text in legend.get_texts()]
    assert named == ["MIM", "PIM", "MaPeT, seed 0", "MaPeT, seed 1", "validation", "training", "blind guess"]
    assert not any(legend.get_window_extent().overlaps(axes.get_tightbbox()) for axes in figure.axes)


def test_without_validation_the_training_alone_is_drawn_and_named(compared: Compared, tmp_path: Path) -> None:
    alone = small_pretraining(
        compared.tokenized, tmp_path, "pretrain.objective=mim", "pretrain.val_split=none", "training.epochs=1"
    ).artifact
    pretrainings = find_pretrainings([alone])
    assert len(drawn_lines(pretrainings, 0)) == 2  # with the reference
    names = [text.get_text() for text in curves_figure(pretrainings, [BLIND]).legends[0].get_texts()]
    assert names == ["MIM", "training", "blind guess"]
    section = pretraining_section(pretrainings, find_tokenizer_builds([compared.tokens]))
    assert (section.rows[0].val_loss, section.rows[0].val_accuracy) == (build_facts.ABSENT, build_facts.ABSENT)
    assert "Validation on 0 images" in section.speed


def test_the_page_shows_the_numbers_of_every_pretraining(page: str, compared: Compared) -> None:
    for artifact, name in zip(compared.pretrained, ("MIM", "PIM", "MaPeT, seed 0", "MaPeT, seed 1"), strict=True):
        facts, seed = artifact.summary, artifact.recipe.options["seed"]
        targets = {"mim": ("6 of 16", "37.5 %")}.get(artifact.recipe.options["objective"], ("12 of 16", "75 %"))
        losses = f"{facts['token_loss']:.3f} {facts['val_token_loss']:.3f}"
        accuracy = build_facts.share(facts["val_token_accuracy"])
        expected = f"{name} vit_demo {' '.join(targets)} {seed} 2 epochs 4 steps {losses} {accuracy}"
        assert expected in page
        assert artifact.fingerprint in page[page.index(expected) :][: len(expected) + 60]


def test_the_blind_guess_is_the_entropy_of_the_token_frequencies(page: str, compared: Compared) -> None:
    counts = np.load(compared.tokens.path / "counts.npy")
    frequencies = counts[counts > 0] / counts.sum()
    assert f"costs their entropy, {-(frequencies * np.log(frequencies)).sum():.2f} nats" in page
    assert f"is right for {build_facts.share(frequencies.max())}" in page


def test_stages_list_every_pretraining_with_its_objective(page: str, compared: Compared) -> None:
    stages = page[page.index("what they cost Stage Made") :]
    rows = re.findall(r"pretrain (\w+), vit_demo, 4 steps .*? ([0-9a-f]{16})", stages)
    names = ("MIM", "PIM", "MaPeT", "MaPeT")
    assert sorted(rows) == sorted(zip(names, (one.fingerprint for one in compared.pretrained), strict=True))


def test_the_page_says_that_losses_of_different_tasks_do_not_rank(page: str) -> None:
    assert "MIM predicts 6 of 16 patches, all at once, from the 10 shown." in page
    assert "PIM predicts 12 of 16 patches, one after the other, each from the 4 shown" in page
    assert "their losses and accuracies do not rank the objectives" in page


def test_titles_and_introduction_speak_of_pretraining_only_where_there_is_some(page: str, compared: Compared) -> None:
    plain = compared.report().artifact.path
    assert page.startswith("Pre-training on k-CLIP tokens of photos")
    assert "With MIM, PIM and MaPeT, 4 Vision Transformers learned" in page
    html = (plain / "report.html").read_text()
    assert "<h1>k-CLIP tokens of photos</h1>" in html
    for text in (html, (plain / "report.md").read_text()):
        assert "pretrain" not in text
        assert "Pre-training on" not in text
    assert not (plain / "curves.png").exists()


def test_the_number_of_seeds_is_said(page: str, compared: Compared) -> None:
    mim, pim, *mapet = compared.pretrained

    def said(*artifacts: Artifact) -> str:
        return seeds_behind(find_pretrainings(artifacts))

    assert "one run with one seed" in said(mim)
    assert "Every row is one run with one seed" in said(mim, pim)
    assert page.count(said(*compared.pretrained)) == 1
    assert "with 2 seeds" in said(*mapet)
    assert "with 1 to 2 seeds" in said(mim, *mapet)


def test_inputs_of_the_report_are_named_after_their_objectives(reported: Artifact, compared: Compared) -> None:
    inputs = reported.recipe.inputs
    names = ("pretrain-mim", "pretrain-pim", "pretrain-mapet", "pretrain-mapet-2")
    assert {inputs[name] for name in names} == {artifact.digest for artifact in compared.pretrained}
    assert len(inputs) == len(compared.build) + 4


def test_the_same_set_is_reported_once_and_another_set_anew(reported: Artifact, compared: Compared) -> None:
    again = compared.report(*reversed(compared.pretrained), compared.pretrained[0])
    assert again.cached
    assert again.artifact.fingerprint == reported.fingerprint
    prints = {compared.report(*compared.pretrained[:count]).artifact.fingerprint for count in (0, 3)}
    assert len(prints | {reported.fingerprint}) == 3


def test_the_markdown_page_shows_the_same_table_and_the_curves(reported: Artifact, compared: Compared) -> None:
    text = (reported.path / "report.md").read_text()
    assert "![How well tokens are predicted](curves.png)" in text
    with Image.open(reported.path / "curves.png") as picture:
        assert picture.width == 1344
    for artifact in compared.pretrained:
        row = next(line for line in text.splitlines() if artifact.fingerprint in line)
        assert f"| {artifact.summary['val_token_loss']:.3f} |" in row
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1
        assert re.fullmatch(r"[|:-]+", table.splitlines()[1])


def test_options_stand_once_where_they_agree_and_side_by_side_where_not(page: str, compared: Compared) -> None:
    shared, differing = split_options(find_pretrainings(compared.pretrained))
    assert shared["training.batch_size"] == "8"
    assert differing["objective"] == ['"mim"', '"pim"', '"mapet"', '"mapet"']
    assert differing["objective_options.masked"] == ["6", *[build_facts.ABSENT] * 3]
    assert differing["seed"] == ["0", "0", "0", "1"]
    assert not set(shared) & set(differing)
    assert "objective_options.cutting_point – 5 5 5" in page  # noqa: RUF001
    assert split_options(find_pretrainings(compared.pretrained[:1]))[1] == {}


def test_labels_name_what_tells_runs_apart_and_count_where_nothing_usual_does(compared: Compared) -> None:
    mapet = compared.pretrained[2]

    def variant(fingerprint: str, **changed: object) -> Artifact:
        recipe = replace(mapet.recipe, options={**mapet.recipe.options, **changed})
        return replace(mapet, fingerprint=fingerprint, recipe=recipe)

    small = {"backbone": {**mapet.recipe.options["backbone"], "name": "vit_small"}}
    runs = [variant("a", colour_jitter=0.1), variant("b", **small), mapet, compared.pretrained[0]]
    labels = [one.label for one in find_pretrainings(runs)]
    assert labels == ["MIM", "MaPeT, vit_demo (1)", "MaPeT, vit_demo (2)", "MaPeT, vit_small"]


def test_the_blind_guess_is_given_for_the_tokens_of_every_tokenizer_that_was_learned(compared: Compared) -> None:
    other = replace(
        compared.tokens,
        digest="f" * 64,
        fingerprint="f" * 16,
        summary={**compared.tokens.summary, "perplexity": 20.0, "largest_share": 0.25},
    )
    first, second = find_tokenizer_builds([compared.tokens, other])
    mim, pim = compared.pretrained[:2]
    learned = replace(pim, recipe=replace(pim.recipe, inputs={**pim.recipe.inputs, "tokens": other.digest}))
    pretrainings = find_pretrainings([mim, learned])
    caption = pretraining_section(pretrainings, [first, second]).figure.caption
    entropy = np.log(compared.tokens.summary["perplexity"])
    assert f"costs their entropy, {entropy:.2f} nats (k-CLIP) and 3.00 nats (k-CLIP)" in caption
    assert "25 % (k-CLIP). A point" in caption
    alone = pretraining_section(find_pretrainings([mim]), [first, second]).figure.caption
    assert f"costs their entropy, {entropy:.2f} nats, and" in alone
    guesses = [BLIND, BlindGuess("VQ-KD", 3.0, 0.25)]
    left, right = curves_figure(pretrainings, guesses).axes
    for axes, heights in ((left, [3.2, 3.0]), (right, [0.1, 0.25])):
        dotted = [line for line in axes.lines if line.get_linestyle() == ":"]
        assert [line.get_ydata()[0] for line in dotted] == heights  # type: ignore[index]


def test_pretrainings_with_one_objective_are_told_apart_by_their_tokenizers(compared: Compared) -> None:
    mim, other = compared.pretrained[0], "f" * 64
    inputs = {**mim.recipe.inputs, "tokens": other}
    learned = replace(mim, fingerprint="f" * 16, recipe=replace(mim.recipe, inputs=inputs))
    names = {compared.tokens.digest: "k-CLIP", other: "VQ-KD"}
    for given in ((mim, learned), (learned, mim)):
        assert [one.label for one in find_pretrainings(given, names)] == ["MIM, VQ-KD", "MIM, k-CLIP"]
    assert [one.label for one in find_pretrainings([mim], names)] == ["MIM"]


def test_a_pretraining_on_other_tokens_is_refused(compared: Compared) -> None:
    recipe = replace(compared.pretrained[0].recipe, inputs={"tokens": "0" * 64})
    with pytest.raises(PipelineError, match="learned the tokens 000000000000"):
        compared.report(replace(compared.pretrained[0], recipe=recipe))


def contrast(colour: str, paper: str) -> float:
    """Compute the contrast of WCAG 2: from 1 (the same) to 21."""
    light = [
        sum(weight * (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4) for weight, part in parts)
        for parts in (zip((0.2126, 0.7152, 0.0722), to_rgb(one), strict=True) for one in (colour, paper))
    ]
    return (max(light) + 0.05) / (min(light) + 0.05)


@pytest.mark.parametrize("palette", [LIGHT, DARK])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_colours_are_those_of_the_tracked_runs_and_readable(
    objective: str, palette: Palette, compared: Compared
) -> None:
    trained = compared.pretrained[0].recipe
    recipe = replace(trained, options={**trained.options, "objective": objective})
    colour = curve_colour(Pretraining(replace(compared.pretrained[0], recipe=recipe), "", 0), palette)
    assert contrast(colour, palette.paper) > 3  # WCAG's least for graphics
    if palette is LIGHT:
        assert colour == objective_colour(objective)


def test_the_demo_says_how_short_its_pretraining_is(compared: Compared) -> None:
    pictures = replace(
        compared.build[0],
        stage="make_demo_images",
        summary={"train_images": 18, "val_images": 4},
        recipe=Recipe("make_demo_images", 1, {"limit": 22, "image_size": 64}),
    )
    workspace = Workspace(Settings(data_root=compared.root, device="cpu", workers=0))
    made = report(
        (pictures, *compared.build),
        compared=compared.pretrained[:1],
        source=compared.source,
        decoding=DecodingOptions(),
        workspace=workspace,
    )
    text = (made.artifact.path / "report.md").read_text()
    assert "Pre-training takes 2 epochs of 18 images, with a Vision Transformer 64 wide and 4 blocks deep" in text
    assert "# Pre-training on k-CLIP tokens of the embedded demo" in text


IN_STEPS = ("training.epochs=null", "training.steps=5", "training.warmup_epochs=0")


@pytest.fixture(scope="module")
def in_steps(compared: Compared) -> Artifact:
    return small_pretraining(compared.tokenized, compared.root, *IN_STEPS).artifact


def test_a_report_tells_of_a_pretraining_that_was_measured_in_steps(in_steps: Artifact, compared: Compared) -> None:
    made = compared.report(in_steps).artifact
    for name in ("report.md", "report.html"):
        text = (made.path / name).read_text()
        assert "None" not in text
        assert "5 steps" in text
    [row] = pretraining_section(find_pretrainings([in_steps]), find_tokenizer_builds([compared.tokens])).rows
    assert row.training == ("5 steps",)
    assert "5 steps on 18 images" in what_is_small(find_pretrainings([in_steps]))


def test_less_than_an_epoch_has_more_ticks_than_its_beginning(in_steps: Artifact, compared: Compared) -> None:
    for given, least in ((in_steps, 2), (compared.pretrained[0], 2)):
        axes = curves_figure(find_pretrainings([given]), [BLIND]).axes[0]
        low, high = axes.get_xlim()
        assert len([tick for tick in axes.get_xticks() if low <= tick <= high]) >= least


def test_epochs_and_steps_stand_side_by_side_in_labels_and_tables(in_steps: Artifact, compared: Compared) -> None:
    in_epochs = compared.pretrained[2]
    for given in ((in_steps, in_epochs), (in_epochs, in_steps)):
        assert [one.label for one in find_pretrainings(given)] == ["MaPeT, 2 epochs", "MaPeT, 5 steps"]
    text = (compared.report(in_steps, in_epochs).artifact.path / "report.md").read_text()
    assert "| 2 epochs, 4 steps |" in text
    assert "| 5 steps |" in text


def test_an_exported_config_says_the_length_that_a_training_was_given(in_steps: Artifact, compared: Compared) -> None:
    def said(artifact: Artifact) -> dict[str, object]:
        config: dict[str, object] = json.loads((artifact.path / "config.json").read_text())["mapet"]["pretraining"]
        return {name: config[name] for name in ("epochs", "steps") if name in config}

    assert said(in_steps) == {"steps": 5}
    assert said(compared.pretrained[0]) == {"epochs": 2}


def test_a_report_of_a_pretraining_without_validation_says_nothing_of_one(compared: Compared) -> None:
    alone = small_pretraining(compared.tokenized, compared.root, "pretrain.val_split=none", *IN_STEPS).artifact
    text = (compared.report(alone).artifact.path / "report.md").read_text()
    assert "Validation on 0 images" in text
    assert "validation measures" not in text
    assert f"| {build_facts.ABSENT} | {build_facts.ABSENT} |" in text


def test_a_report_of_a_pretraining_on_images_without_labels_is_whole(tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    for number, photo in enumerate(sorted(make_photos(tmp_path / "photos", train=9, val=2).rglob("*.jpg"))):
        place = flat / photo.relative_to(tmp_path / "photos").parts[0] / f"{number}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        photo.replace(place)
    config, root = small_config(flat, tmp_path / "clip"), tmp_path / "root"
    made = build(config, root)
    built = TokenizedImages(made["index_images"].artifact, config.images, made["tokenize_images"].artifact)
    trained = small_pretraining(built, root, *IN_STEPS).artifact
    stages = tuple(result.artifact for result in made.results if result.stage != "report")
    text = (Compared(stages, (), config.images, built, root).report(trained).artifact.path / "report.md").read_text()
    assert "| without labels |" in text
    assert "22 images (train 18, val 4), without labels" in text
    assert "None" not in text


def test_a_loss_that_is_no_number_is_named_in_its_cell(compared: Compared) -> None:
    mim = compared.pretrained[0]
    odd = replace(mim, digest="f" * 64, summary={**mim.summary, "val_token_loss": float("nan")})
    text = (compared.report(odd).artifact.path / "report.md").read_text()
    assert "| not finite |" in text
