"""Values that are possible by themselves, and not with the other options, these images or this machine: one sentence
from `mapet plan` and from the run itself, before anything but the index of the images is built.
"""

from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

import annotated_types
import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline.configuration.config import ReproduceConfig
from pipeline.engine.settings import Settings
from tests.builds import make_photos
from tests.commands import mapet
from tests.tiny_clip import write_tiny_clip

# Of 60 training and 12 validation photographs, options of a run that can be.
TRAINED = (
    "training.batch_size=8",
    "grid.tokens_only=[]",
    'evaluate.protocols=["fine_tune","linear_probe","zero_shot"]',
    "fine_tune.training.batch_size=16",
    "scratch.training.batch_size=16",
    "linear_probe.training.batch_size=16",
    "zero_shot.templates=simple",
)
POLICY = "fine_tune.auto_augment: expected a policy of timm"
# Everything that cannot be is said at once: what one command is given, and what it says of each option.
IMPOSSIBLE: dict[str, tuple[tuple[str, str], ...]] = {
    "values out of bounds": (
        ("fine_tune.auto_augment=foo", f"{POLICY}, such as rand-m9-mstd0.5, augmix-m5-w4, original, or nothing"),
        ("fine_tune.seed=-1", "fine_tune.seed: input should be greater than or equal to 0, but -1"),
        ("pretrain.seed=4294967296", "pretrain.seed: input should be less than 4294967296"),
        ("fine_tune.crop_pct=0.001", "fine_tune.crop_pct: input should be greater than or equal to 0.1"),
        ("evaluate.protocols=[]", "evaluate.protocols: tuple should have at least 1 item"),
        ("features.splits=[]", "features.splits: tuple should have at least 1 item"),
        ("grid.seeds=[]", "grid.seeds: tuple should have at least 1 item"),
        ("linear_probe.learning_rate_factors=[2.0]", "1 must be among them"),
        ("fit_vqkd.network.vocabulary=70000", "fit_vqkd.network.vocabulary: input should be less than"),
        ("segmentation.transforms.short_side=4096", "short_side 4096 is more than long_side 256"),
    ),
    "a section of a policy that timm would not read": (("fine_tune.auto_augment=rand-foo", POLICY),),
    "sizes and splits": (
        ("training.batch_size=61", "training.batch_size=61: 60 images of 'train' do not fill one step"),
        ("linear_probe.training.batch_size=64", "linear_probe.training.batch_size=64: 60 labelled images of 'train'"),
        ("fine_tune.train_fraction=0.1", "6 labelled images of 'train' at fine_tune.train_fraction=0.1"),
        ("fine_tune.val_split=vall", "fine_tune.val_split: the data set has no split 'vall' (did you mean 'val'?)"),
        ("pretrain.val_split=valid", "pretrain.val_split: the data set has no split 'valid'"),
        ('features.splits=["train","tst"]', "features.splits: the data set has no split 'tst'"),
        ("codebook.vocabulary=5000", "codebook.vocabulary=5000: features.sample_fraction=1"),
        ("objectives.mim.masked=17", "objectives.mim: 17 predicted patches of 16"),
        ("objectives.mapet.cutting_point=40", "objectives.mapet: cutting_point 40 does not cut 16 patches"),
        ("zero_shot.class_names=imagenet", "zero_shot.class_names: 1,000 names for 2 classes"),
    ),
    "names and files": (
        ("clip.model=RN50x46", "open_clip has no model 'RN50x46'; close to it: RN50x4"),
        ('grid.tokenizers=["kclip","vqkd"]', "vqkd.checkpoint='vqkd_encoder_bas' is not a file; expected"),
        ("vqkd.checkpoint=vqkd_encoder_bas", "or fit, or one of vqkd_encoder_base_decoder_3x768x12_clip"),
        ('grid.tokens_only=["dalle"]', "dalle.checkpoint='' is not a file; expected"),
        ("transfer.folder=/not/there", "transfer.folder=/not/there does not exist"),
        ('evaluate.protocols=["segmentation","transfer"]', "segmentation.path is empty"),
    ),
    "a tag of other weights": (
        ("clip.model=RN50", "'opanai' is neither a file nor a tag of open_clip (tags: openai"),
        ("clip.pretrained=opanai", "give a tag or the path of a checkpoint"),
    ),
    "patches that do not meet": (("backbone.image_size=32", "an image has "),),
    "patches that do not divide": (
        ("backbone.image_size=65", "backbone.image_size 65 is not a multiple of backbone.patch_size 16"),
    ),
    "protocols of nothing": (
        ('evaluate.protocols=["transfer","fine_tune"]', "evaluate.protocols names transfer, and nothing would be"),
        ("grid.objectives=[]", "evaluate.protocols names fine_tune, and nothing would be judged by it"),
        ("grid.scratch=false", "grid.objectives is empty and grid.scratch is false"),
    ),
    "more processes than images": (
        ("settings.processes=9", "training.batch_size=8 of 9 processes: each needs an image"),
    ),
    "nodes that cannot meet": (("settings.nodes=2", "settings.nodes=2 needs settings.rendezvous=HOST:PORT"),),
    "a GPU that is not there": (("settings.device=cuda:77", "settings.device=cuda:77: torch finds "),),
}  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Options of a run that can be, on real photographs."""
    folder = tmp_path_factory.mktemp("possible")
    write_tiny_clip(folder / "clip")
    make_photos(folder / "photos")
    return (
        f"images.path={folder / 'photos'}",
        "images.kind=folder",
        f"clip.model=local-dir:{folder / 'clip'}",
        "clip.pretrained=openai",
        "features.sample_fraction=1.0",
        "codebook.vocabulary=32",
        "settings.workers=0",
        "settings.device=cpu",
    )


@pytest.mark.parametrize("kind", IMPOSSIBLE)
def test_what_cannot_be_is_refused_before_anything_is_built(kind: str, small: tuple[str, ...], tmp_path: Path) -> None:
    options = (*small, *TRAINED, *(option for option, _ in IMPOSSIBLE[kind]))
    for command in (("plan", "reproduce"), ("reproduce",)):
        said = mapet(tmp_path / "said", *command, "demo", *options, f"settings.data_root={tmp_path / 'data'}")
        assert said.code == 2, (command, said.out, said.err)
        assert said.last.startswith("mapet: error: "), said.err
        assert "Traceback" not in said.err
        for option, words in IMPOSSIBLE[kind]:
            assert words in said.last, option
    built = {path.parent.parent.name for path in (tmp_path / "data").glob("*/*/artifact.json")}
    assert built <= {"index_images"}


def test_what_can_be_is_planned(small: tuple[str, ...], tmp_path: Path) -> None:
    said = mapet(tmp_path, "plan", "reproduce", "demo", *small, *TRAINED, f"settings.data_root={tmp_path / 'data'}")
    assert said.code == 0, said.err
    assert "evaluate-fine_tune-mapet" in said.out


def test_images_without_labels_are_refused_by_protocols_that_need_them(small: tuple[str, ...], tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos")
    for split in ("train", "val"):
        for number, path in enumerate(sorted((photos / split).rglob("*.jpg"))):
            path.rename(photos / split / f"{number:04d}.jpg")
        for folder in [path for path in (photos / split).iterdir() if path.is_dir()]:
            folder.rmdir()
    words = (*small, *TRAINED, f"images.path={photos}", f"settings.data_root={tmp_path / 'data'}")
    said = mapet(tmp_path / "said", "plan", "reproduce", "demo", *words)
    assert said.code == 2, said.out
    assert "fine_tune.train_split='train' has no labelled images" in said.last


def numeric_fields(config: type[BaseModel], path: str = "") -> dict[str, list[Any]]:
    """Return the bounds of every number that an option takes, items of lists too."""
    found: dict[str, list[Any]] = {}
    for name, field in config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= numeric_fields(field.annotation, f"{path}{name}.")
        elif (bounds := bounds_of(field.annotation, field.metadata)) is not None:
            found[f"{path}{name}"] = bounds
    return found


def bounds_of(kind: Any, metadata: list[Any]) -> list[Any] | None:
    """Return none of what takes no number."""
    if get_origin(kind) is Annotated:
        inner, *own = get_args(kind)
        rules = [rule for one in own for rule in (one.metadata if isinstance(one, FieldInfo) else [one])]
        return bounds_of(inner, rules)
    if kind in (int, float):
        return metadata
    parts = [part for part in get_args(kind) if part not in (NoneType, Ellipsis) and not isinstance(part, str)]
    inherited = metadata if get_origin(kind) is not tuple else []
    return next((found for part in parts if (found := bounds_of(part, inherited)) is not None), None)


def test_every_number_has_a_lower_and_an_upper_bound() -> None:
    fields = numeric_fields(ReproduceConfig) | numeric_fields(Settings, "settings.")
    assert len(fields) > 200
    low, high = (annotated_types.Ge, annotated_types.Gt), (annotated_types.Le, annotated_types.Lt)
    open_ended = [
        name
        for name, rules in fields.items()
        if not any(isinstance(rule, low) for rule in rules) or not any(isinstance(rule, high) for rule in rules)
    ]
    assert open_ended == []
