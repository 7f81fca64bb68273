from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.clip.demo import TEMPLATES, _shift, save_demo_clip, train_demo_clip, zero_shot_accuracy
from models.clip.demo_options import DemoClipOptions
from models.errors import ModelError

WORDS = ("red", "green", "blue")
TINY = DemoClipOptions(
    image_size=32, width=4, embedding_width=16, text_width=16, text_layers=1, batch_size=6, epochs=8, learning_rate=3e-3
)


def _coloured_squares() -> tuple[Tensor, Tensor]:
    """Return noise in which one channel is brighter: the class."""
    labels = torch.arange(36) % 3
    images = torch.randint(0, 100, (36, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    images[torch.arange(36), labels] += 150
    return images.to(torch.uint8), labels


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, list[float]]:
    losses: list[float] = []
    images, labels = _coloured_squares()
    model = train_demo_clip(images, labels, WORDS, TINY, on_step=lambda step, steps, loss: losses.append(loss))
    return model, losses


def _same(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_training_lowers_the_loss_and_names_the_classes(trained: tuple[nn.Module, list[float]]) -> None:
    model, losses = trained
    assert len(losses) == 8 * 6
    assert sum(losses[-6:]) < 0.9 * sum(losses[:6])
    assert zero_shot_accuracy(model, *_coloured_squares(), WORDS) > 0.8
    assert not model.training


def test_training_again_gives_the_same_bits_whatever_the_global_seed(trained: tuple[nn.Module, list[float]]) -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    again = train_demo_clip(*_coloured_squares(), WORDS, TINY)
    assert torch.equal(torch.get_rng_state(), before)
    assert _same(trained[0], again)


def test_another_seed_gives_other_weights() -> None:
    images, labels = _coloured_squares()
    short = TINY.model_copy(update={"epochs": 1})
    one, other = (train_demo_clip(images, labels, WORDS, short.model_copy(update={"seed": seed})) for seed in (0, 1))
    assert not _same(one, other)


def test_open_clip_loads_the_saved_directory_with_equal_outputs(
    trained: tuple[nn.Module, list[float]], tmp_path: Path
) -> None:
    import open_clip

    model = trained[0]
    save_demo_clip(model, tmp_path, TINY)
    loaded, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    loaded.eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path}")
    texts = tokenizer([template.format(word) for word in WORDS for template in TEMPLATES])
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(loaded.encode_image(pictures), model.encode_image(pictures))
        assert torch.equal(loaded.encode_text(texts), model.encode_text(texts))
    assert _same(loaded, model)
    assert texts.shape[1] == TINY.context_length
    normalisation = preprocess.transforms[-1]
    assert tuple(normalisation.mean) == open_clip.OPENAI_DATASET_MEAN
    assert tuple(normalisation.std) == open_clip.OPENAI_DATASET_STD


def test_equal_weights_are_saved_as_equal_bytes(trained: tuple[nn.Module, list[float]], tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_demo_clip(trained[0], tmp_path / name, TINY)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["open_clip_config.json", "open_clip_model.safetensors"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_words_without_a_caption_keep_their_untrained_embedding(trained: tuple[nn.Module, list[float]]) -> None:
    import open_clip

    images, labels = _coloured_squares()
    other = train_demo_clip(images, labels, WORDS, TINY.model_copy(update={"epochs": 1}))
    moved = (trained[0].token_embedding.weight != other.token_embedding.weight).any(dim=1)
    texts = [template.format(word) for word in WORDS for template in TEMPLATES]
    used = open_clip.tokenize(texts, context_length=TINY.context_length).unique()
    assert moved.nonzero().flatten().tolist() == used.tolist()


def test_shifts_move_each_image_by_its_own_offset_and_repeat_the_border() -> None:
    column = torch.arange(8, dtype=torch.uint8).expand(50, 3, 8, 8).contiguous()
    shifted = _shift(column, 2, torch.Generator().manual_seed(0))
    expected = {tuple((torch.arange(8) + offset).clamp(0, 7).tolist()) for offset in range(-2, 3)}
    rows = {tuple(row.tolist()) for row in shifted[:, 0, 0]}
    assert rows == expected
    assert torch.equal(_shift(column, 0, torch.Generator()), column)


def test_a_loss_that_is_not_finite_stops_the_training_and_says_where() -> None:
    images, labels = _coloured_squares()
    wild = TINY.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(ModelError, match=r"the loss is (nan|inf|-inf) at step \d+ of 48, .*; lower learning_rate"):
        train_demo_clip(images, labels, WORDS, wild)


def test_images_that_do_not_fit_the_options_are_refused() -> None:
    images, labels = _coloured_squares()
    with pytest.raises(ModelError, match=r"\(3, 16, 16\), expected \(3, 32, 32\)"):
        train_demo_clip(images[:, :, :16, :16], labels, WORDS, TINY)
    with pytest.raises(ModelError, match="labels from 0 to 2, expected 0 to 1"):
        train_demo_clip(images, labels, WORDS[:2], TINY)
    with pytest.raises(ModelError, match=r"5 images with 5 labels.*at least one batch of 6"):
        train_demo_clip(images[:5], labels[:5], WORDS, TINY)
