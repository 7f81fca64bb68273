"""CLIP zero-shot: scores against open_clip used by hand, the demo's accuracy, and captions that cannot be."""

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.clip.demo_options import DemoClipOptions
from models.clip.encoder import load_whole_clip
from models.clip.options import ClipOptions
from models.clip.zero_shot import ZeroShotClassifier
from models.errors import ModelError
from pipeline.configuration.overrides import validated
from pipeline.engine.errors import PipelineError
from pipeline.engine.words import counted
from pipeline.engine.workspace import Workspace
from pipeline.stages.evaluate.captions import caption_names, caption_templates
from pipeline.stages.evaluate.evaluation_options import ZeroShotOptions
from pipeline.stages.evaluate.judged_clip import zero_shot_definition
from storage.layout import Layout
from tests.builds import make_photos
from tests.forked import call
from tests.pipeline.zero_shots import classify, job_of
from tests.stages import train_demo_clip
from tests.tiny_clip import write_tiny_clip

OWN = ("a picture of {}", "{} in the sun", "my {}, by the sea")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("photos") / "photos", train=1)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> ClipOptions:
    model = write_tiny_clip(tmp_path_factory.mktemp("clip"), reads_captions=True)
    return ClipOptions(model=model, precision="fp32", image_size=128, dilate_last_stage=True)


@torch.no_grad()
def guesses_by_hand(clip: ClipOptions, images: list[Path], captions: list[list[str]]) -> Tensor:
    """Return the class by class and image by image, with what open_clip makes of the directory."""
    model, _, preprocess = open_clip.create_model_and_transforms(clip.model)
    tokenizer, classes = open_clip.get_tokenizer(clip.model), []
    model.eval()
    for texts in captions:
        features = model.encode_text(tokenizer(texts))
        mean = torch.stack([feature / feature.norm() for feature in features]).mean(0)
        classes.append(mean / mean.norm())
    seen = torch.stack([model.encode_image(preprocess(Image.open(path))[None])[0] for path in images])
    return (seen @ torch.stack(classes).T).argmax(1)


def test_every_image_gets_the_class_whose_captions_open_clip_finds_nearest(
    photos: Path, clip: ClipOptions, tmp_path: Path
) -> None:
    names = ("bloom", "roof")
    images = sorted((photos / "val").rglob("*.jpg"))
    guesses = guesses_by_hand(clip, images, [[template.format(name) for template in OWN] for name in names])
    assert set(guesses.tolist()) == {0, 1}  # or the test could not tell
    expected = np.array([names[guess] == path.parent.name for guess, path in zip(guesses, images, strict=True)])
    scores, right = classify(job_of(tmp_path, photos, clip, templates=OWN))
    assert right.tolist() == expected.tolist()
    assert scores["top1"].value == pytest.approx(100 * expected.mean(), abs=1e-3)
    assert (scores["top5"].value, scores["top5"].images) == (100, 12)
    assert (
        scores["top1"].reading
        == "zero-shot, a local directory's CLIP, 3 captions of one's own a class, one centre crop"
    )


@pytest.mark.parametrize(("templates", "count"), [("openai", 80), ("simple", 7)])
def test_openais_captions_are_used_by_name(
    templates: str, count: int, photos: Path, clip: ClipOptions, tmp_path: Path
) -> None:
    texts = [[template(name) for template in caption_templates(templates)] for name in ("a_flower", "a_temple")]
    assert (len(texts[0]), len(set(texts[0]))) == (count, count)
    images = sorted((photos / "val").rglob("*.jpg"))
    truth = torch.tensor([0] * 6 + [1] * 6)
    expected = guesses_by_hand(clip, images, [[text.replace("_", " ") for text in one] for one in texts]) == truth
    given = {"templates": templates, "class_names": ("a flower", "a temple")}
    scores, right = classify(job_of(tmp_path, photos, clip, **given))
    assert right.tolist() == expected.tolist()
    assert f"{count} {templates} captions a class" in scores["top1"].reading


def test_two_processes_score_as_one(photos: Path, clip: ClipOptions, tmp_path: Path) -> None:
    alone, right = classify(job_of(tmp_path / "one", photos, clip, templates=OWN))
    in_two = (tmp_path / "said", classify, job_of(tmp_path / "two", photos, clip, templates=OWN))
    together, same = call(*in_two, processes=2)
    assert same.tolist() == right.tolist()
    assert together == alone


COLOURS = ("red", "green", "blue")


def write_colours(folder: Path) -> Path:
    """Write noise in which one channel is a little brighter: the class."""
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 20)):
        for number, name in enumerate(COLOURS):
            (folder / split / f"{number}_{name}").mkdir(parents=True)
            for image in range(count):
                pixels = random.integers(0, 200, (32, 32, 3))
                pixels[..., number] += random.integers(0, 55)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / f"{number}_{name}/{image}.png")
    return folder


def test_the_demos_clip_scores_what_its_training_reported(tmp_path: Path) -> None:
    job = job_of(tmp_path, write_colours(tmp_path / "colours"), None, templates="demo")
    tiny = DemoClipOptions(
        image_size=32, width=4, embedding_width=16, text_width=16, text_layers=1, batch_size=6, epochs=8,
        learning_rate=3e-3,
    )  # fmt: skip
    workspace = Workspace(job.settings)
    trained = train_demo_clip(tiny, images=job.images, source=job.source, workspace=workspace).artifact
    clip = ClipOptions(model=f"local-dir:{trained.path}", dilate_last_stage=True, precision="fp32")
    scores, right = classify(job_of(tmp_path / "again", tmp_path / "colours", clip, templates="demo"))
    assert 0.4 < trained.summary["zero_shot_accuracy"] < 1
    assert round(float(right.mean()), 4) == trained.summary["zero_shot_accuracy"]
    assert "4 demo captions a class" in scores["top1"].reading


def test_a_data_set_without_training_images_is_enough(photos: Path, clip: ClipOptions, tmp_path: Path) -> None:
    (tmp_path / "only").mkdir()
    (tmp_path / "only/val").symlink_to(photos / "val")
    scores, _ = classify(job_of(tmp_path, tmp_path / "only", clip, templates=OWN))
    assert scores["top1"].images == 12


def test_a_lower_precision_moves_similarities_by_little(clip: ClipOptions) -> None:
    pictures = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = load_whole_clip(clip)
    exact, rounded = (ZeroShotClassifier(whole, COLOURS, OWN, precision=name)(pictures) for name in ("fp32", "bf16"))
    assert exact.dtype == rounded.dtype == torch.float32
    assert 0 < (exact - rounded).abs().max() < 0.05


# What a class is called


def test_imagenets_wnids_are_called_as_openai_calls_them() -> None:
    wnids = [f"n{number:08d}" for number in range(1000)]
    names = caption_names("auto", "openai", wnids, classes=1000)
    assert (names[0], names[-1]) == ("tench", "toilet paper")
    assert caption_names("imagenet", "openai", [f"class {number}" for number in range(1000)], classes=1000) == names
    for odd in (wnids[:100], wnids[::-1]):  # a subset, and another order: these names would not be theirs
        with pytest.raises(PipelineError, match=r"called n00000\d99, which CLIP cannot read|called n00000000, which"):
            caption_names("auto", "openai", odd, classes=len(odd))


def test_names_of_classes_that_are_numbers_meet_them_only_when_their_order_is_said() -> None:
    indexed = sorted(str(number) for number in range(1000))  # 0, 1, 10, 100, 101, ...
    with pytest.raises(PipelineError, match=r"class_order=number\) or .*\(zero_shot\.class_order=index\)"):
        caption_names("imagenet", "openai", indexed, classes=1000)
    by_number = caption_names("imagenet", "openai", indexed, classes=1000, order="number")
    assert [by_number[indexed.index(number)] for number in ("0", "2", "999")] == [
        "tench",
        "great white shark",
        "toilet paper",
    ]
    assert caption_names("imagenet", "openai", indexed, classes=1000, order="index")[2] == "great white shark"
    in_order = [f"{number:03d}" for number in range(1000)]
    assert caption_names("imagenet", "openai", in_order, classes=1000)[2] == "great white shark"


def test_numbers_are_no_captions_and_labels_from_1_are_suspected() -> None:
    with pytest.raises(PipelineError, match=r"called by numbers \(0, 1, \.\.\.\), which tell CLIP nothing"):
        caption_names("auto", "openai", ["0", "1"], classes=2)
    with pytest.raises(PipelineError, match=r"2 names for 3 classes.*images\.first_label=1"):
        caption_names(("cat", "dog"), "openai", ["0", "1", "2"], classes=3)


def test_underscores_of_class_names_are_spaces() -> None:
    assert caption_names("auto", "simple", ["apple_pie", "Boeing 717"], classes=2) == ["apple pie", "Boeing 717"]
    assert caption_names("auto", "demo", ["0_zero", "1_one"], classes=2) == ["zero", "one"]


def test_class_names_may_be_the_lines_of_a_file_whose_place_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("crème brûlée\napple pie\n", encoding="utf-8")
    options = ZeroShotOptions(class_names=str(tmp_path / "names.txt"))
    assert options == ZeroShotOptions(class_names=("crème brûlée", "apple pie"))
    assert caption_names(options.class_names, "openai", ["a", "b"], classes=2) == ["crème brûlée", "apple pie"]


@pytest.mark.parametrize("count", [1, 3])
def test_more_or_fewer_names_than_classes_are_refused(
    count: int, photos: Path, clip: ClipOptions, tmp_path: Path
) -> None:
    job = job_of(tmp_path, photos, clip, class_names=("x", "y", "z")[:count])
    with pytest.raises(PipelineError, match=f"zero_shot.class_names: {counted(count, 'name')} for 2 classes"):
        classify(job)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"templates": ["a photo"]}, "expected one {} for the class name in the caption 'a photo'"),
        ({"templates": ["a {}", "{} and {}"]}, "in the caption '{} and {}'"),
        ({"templates": ["{} of {place}"]}, "in the caption '{} of {place}'"),
        ({"templates": ["{place}"]}, "in the caption '{place}'"),
        ({"templates": []}, "expected openai, simple, demo, or a list of captions"),
        ({"templates": "imagenet"}, "expected openai, simple, demo, or a list of captions"),
        ({"class_names": "/no/such/file"}, "expected auto, imagenet, a list of names, or a text file"),
        ({"class_names": ["a", ""]}, "found an empty one"),
    ],
)
def test_captions_that_cannot_be_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(PipelineError) as error:
        validated(ZeroShotOptions, options)
    assert words in str(error.value)


# The CLIP


def test_without_a_clip_nothing_can_be_classified(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"none is given; set clip\.model"):
        classify(job_of(tmp_path, photos, None))


def test_a_checkpoint_without_text_tower_is_refused(photos: Path, clip: ClipOptions, tmp_path: Path) -> None:
    state = load_file(Path(clip.model.removeprefix("local-dir:")) / "open_clip_model.safetensors")
    tower = {name: tensor for name, tensor in state.items() if name.startswith("visual.")}
    for words, kept in (
        ("the image tower alone", tower),
        ("missing: positional_embedding, text_projection", {**tower, "logit_scale": state["logit_scale"]}),
    ):
        save_file(kept, tmp_path / "tower.safetensors")
        odd = clip.model_copy(update={"pretrained": str(tmp_path / "tower.safetensors")})
        with pytest.raises(ModelError, match=rf"tower\.safetensors .*{words}"):
            classify(job_of(tmp_path / words[:3], photos, odd, templates=OWN))


def test_random_weights_are_refused(photos: Path, clip: ClipOptions, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="random weights know no words"):
        classify(job_of(tmp_path, photos, clip.model_copy(update={"pretrained": ""}), templates=OWN))


def test_an_image_that_cannot_be_decoded_is_named(clip: ClipOptions, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", train=1, val=3)
    (photos / "val/roof/0001.jpg").write_bytes(b"no picture")
    with pytest.raises(PipelineError, match=r"val/roof/0001\.jpg: cannot be decoded \(not one of JPEG.*mend or remove"):
        classify(job_of(tmp_path, photos, clip, templates=OWN))


def test_what_defines_a_result_is_both_towers_and_not_where_they_lie(clip: ClipOptions, tmp_path: Path) -> None:
    moved = ClipOptions(model=write_tiny_clip(tmp_path / "moved", reads_captions=True), precision="fp32")
    other = ClipOptions(model=write_tiny_clip(tmp_path / "other", reads_captions=True), precision="fp32")
    path = tmp_path / "other/open_clip_model.safetensors"
    state = load_file(path)
    state["token_embedding.weight"][7] += 1
    save_file(state, path)
    layout = Layout(tmp_path / "root")
    found, of_moved, of_other = (zero_shot_definition(one, layout) for one in (clip, moved, other))
    assert of_moved == found  # patches of another size are no matter either
    assert of_other["weights"] != found["weights"]
    assert found["image_size"] == 64
