"""DALL-E's tokenizer on synthetic encoders of the published layout, against its network written out by hand."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from models.errors import ModelError
from models.tokenizers.dalle import PUBLISHED, DalleEncoder, DalleTokenizer, load_dalle
from models.tokenizers.dalle_options import DalleOptions
from tests.models.dalle_files import SMALL, images, published_shapes, small_state, write


def logits_by_hand(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """Return Float64, so that rounding on either side cannot agree by chance."""

    def convolution(x: Tensor, name: str, padding: int) -> Tensor:
        return F.conv2d(x, state[f"{name}.w"].double(), state[f"{name}.b"].double(), padding=padding)

    x = convolution(0.8 * (images.double() / 255) + 0.1, "blocks.input", 3)
    for group in (1, 2, 3, 4):
        for block in (1, 2):
            name = f"blocks.group_{group}.block_{block}"
            y = convolution(x.clamp_min(0), f"{name}.res_path.conv_1", 1)
            y = convolution(y.clamp_min(0), f"{name}.res_path.conv_2", 1)
            y = convolution(y.clamp_min(0), f"{name}.res_path.conv_3", 1)
            y = convolution(y.clamp_min(0), f"{name}.res_path.conv_4", 0)
            widens = group > 1 and block == 1
            x = (convolution(x, f"{name}.id_path", 0) if widens else x) + y / 64
        if group < 4:
            batch, width, height, _ = x.shape
            x = x.view(batch, width, height // 2, 2, height // 2, 2).amax((3, 5))
    return convolution(x.clamp_min(0), "blocks.output.conv", 0)


@pytest.fixture
def tokenizer(tmp_path: Path) -> DalleTokenizer:
    options = DalleOptions(checkpoint=write(tmp_path / "encoder.safetensors", small_state()), image_size=32)
    return load_dalle(options, shape=SMALL)


def test_the_published_layout_has_74_tensors_and_53_8_million_numbers() -> None:
    with torch.device("meta"):
        state = DalleEncoder().state_dict()
    assert {name: list(tensor.shape) for name, tensor in state.items()} == published_shapes()
    assert len(state) == 74
    assert round(sum(tensor.numel() for tensor in state.values()) / 1e6, 1) == 53.8


def test_at_112_pixels_there_are_14_by_14_tokens_of_8192() -> None:
    with torch.device("meta"):
        logits = DalleEncoder()(torch.empty(2, 3, 112, 112))
    assert logits.shape == (2, 8192, 14, 14)
    assert PUBLISHED.stride == 8
    assert DalleOptions().image_size == 112


def test_tokens_are_the_argmax_of_the_network_written_out_by_hand(tokenizer: DalleTokenizer) -> None:
    tokens = tokenizer(images(6))
    expected = logits_by_hand(small_state(), images(6))
    assert (tokens.shape, tokens.dtype, tokenizer.grid, tokenizer.vocabulary) == ((6, 16), torch.int64, (4, 4), 64)
    assert torch.equal(tokens, expected.argmax(1).flatten(1))
    assert len(tokens.unique()) > 8
    pixels = images(6).float() / 255 * 0.8 + 0.1
    torch.testing.assert_close(tokenizer.encoder(pixels).double(), expected, rtol=1e-4, atol=1e-4)


def test_every_tensor_of_the_synthetic_encoder_counts() -> None:
    state = small_state()
    whole = logits_by_hand(state, images(1))
    for name in state:
        without = logits_by_hand(state | {name: torch.zeros_like(state[name])}, images(1))
        assert (without - whole).abs().max() > 0.01, name


def test_tokens_stand_in_raster_order(tokenizer: DalleTokenizer) -> None:
    picture = images(1)
    before = tokenizer.encoder(picture.float()).flatten(2)
    changed = picture.clone()
    changed[..., -1, 0] = 255 - changed[..., -1, 0]
    moved = (tokenizer.encoder(changed.float()).flatten(2) - before).abs().amax((0, 1))
    assert moved.argmax() == 12  # the lower left of 4 x 4


def test_tokens_do_not_depend_on_the_size_of_the_batch(tokenizer: DalleTokenizer) -> None:
    whole = tokenizer(images(7))
    for size in (1, 2, 3):
        assert torch.equal(torch.cat([tokenizer(part) for part in images(7).split(size)]), whole)


def test_encoding_leaves_no_trace(tokenizer: DalleTokenizer) -> None:
    before = {name: tensor.clone() for name, tensor in tokenizer.state_dict().items()}
    picture = images(2)
    first = tokenizer.train()(picture)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = tokenizer(picture)
    assert torch.equal(first, again)
    assert not any(module.training for module in tokenizer.modules())
    assert not any(tensor.requires_grad for tensor in tokenizer.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in tokenizer.state_dict().items())
    assert torch.equal(picture, images(2))


def test_of_equal_logits_the_lowest_id_wins(tmp_path: Path) -> None:
    state = small_state()
    for kind in "wb":
        state[f"blocks.output.conv.{kind}"][32:] = state[f"blocks.output.conv.{kind}"][:32].clone()
    options = DalleOptions(checkpoint=write(tmp_path / "twice.safetensors", state), image_size=32)
    tokens = load_dalle(options, shape=SMALL)(images(4))
    expected = logits_by_hand(state, images(4))[:, :32].argmax(1).flatten(1)
    assert torch.equal(tokens, expected)


def test_a_patch_without_a_finite_number_gets_no_token(tokenizer: DalleTokenizer) -> None:
    whole = tokenizer(images(2))
    place = (torch.tensor(1), torch.tensor(5), torch.tensor(2), torch.tensor(3))
    tokenizer.encoder.register_forward_hook(lambda _, __, logits: logits.index_put(place, torch.tensor(torch.nan)))
    tokens = tokenizer(images(2))
    assert tokens[1, 11] == -1
    tokens[1, 11] = whole[1, 11]
    assert torch.equal(tokens, whole)


def test_preprocessing_says_lanczos_and_the_mapping_of_pixels(tokenizer: DalleTokenizer) -> None:
    wanted = tokenizer.preprocessing
    assert (wanted.image_size, wanted.interpolation) == (32, "lanczos")
    pixels = torch.linspace(0, 1, 5, dtype=torch.float64)
    torch.testing.assert_close((pixels - wanted.mean[0]) / wanted.std[0], 0.8 * pixels + 0.1)


def test_the_digest_knows_weights_and_size_but_no_file(tmp_path: Path, tokenizer: DalleTokenizer) -> None:
    def digest(state: dict[str, Tensor], name: str, image_size: int = 32) -> str:
        torch.save({"state_dict": state}, tmp_path / name)
        return load_dalle(DalleOptions(checkpoint=str(tmp_path / name), image_size=image_size), shape=SMALL).digest

    changed = small_state()
    changed["blocks.group_2.block_1.id_path.b"][3] += 1e-6
    assert digest(small_state(), "same.pt") == tokenizer.digest
    assert len({tokenizer.digest, digest(changed, "changed.pt"), digest(small_state(), "larger.pt", 40)}) == 3


# What is refused


def test_a_checkpoint_that_does_not_fit_names_the_first_of_each_kind(tmp_path: Path) -> None:
    state = small_state()
    state["blocks.group_3.block_2.id_path.w"] = state.pop("blocks.group_3.block_1.id_path.w")
    state["blocks.output.conv.b"] = torch.zeros(63)
    del state["blocks.group_4.block_1.id_path.b"]
    options = DalleOptions(checkpoint=write(tmp_path / "odd.safetensors", state))
    with pytest.raises(ModelError) as refused:
        load_dalle(options, shape=SMALL)
    assert "missing: blocks.group_3.block_1.id_path.w and 1 more" in str(refused.value)
    assert "unexpected: blocks.group_3.block_2.id_path.w" in str(refused.value)
    assert "of another shape: blocks.output.conv.b ([63] instead of [64])" in str(refused.value)


def test_an_encoder_of_other_sizes_is_not_taken_for_the_published_one(tmp_path: Path) -> None:
    options = DalleOptions(checkpoint=write(tmp_path / "small.safetensors", small_state()))
    with pytest.raises(ModelError, match=r"8192 codes: of another shape: blocks.input.w \(\[8, 3, 7, 7\] instead of"):
        load_dalle(options)


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    state = small_state() | {"blocks.input.b": torch.zeros(SMALL.hidden, dtype=torch.int32)}
    options = DalleOptions(checkpoint=write(tmp_path / "odd.safetensors", state))
    with pytest.raises(ModelError, match=r"blocks.input.b is torch.int32"):
        load_dalle(options, shape=SMALL)


@pytest.mark.parametrize("name", ["encoder.safetensors", "encoder.pt"])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    save_file(small_state(), path) if path.suffix == ".safetensors" else torch.save(small_state(), path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="not a readable checkpoint"):
        load_dalle(DalleOptions(checkpoint=str(path)), shape=SMALL)


def test_a_pickled_module_is_sent_to_its_conversion(tmp_path: Path) -> None:
    torch.save(torch.nn.Sequential(torch.nn.ReLU()), tmp_path / "encoder.pkl")
    with pytest.raises(ModelError, match="`mapet convert-dalle` first"):
        load_dalle(DalleOptions(checkpoint=str(tmp_path / "encoder.pkl")))
    with pytest.raises(ModelError, match=r"dalle\.checkpoint is empty.*mapet convert-dalle"):
        load_dalle(DalleOptions())


def test_images_and_sizes_that_do_not_fit_are_refused(tokenizer: DalleTokenizer) -> None:
    with pytest.raises(ModelError, match=r"expected torch.uint8 \[B, 3, 32, 32\]"):
        tokenizer(images(1, size=40))
    with pytest.raises(ModelError, match="image size 36: expected a multiple of 8"):
        DalleTokenizer(tokenizer.encoder, image_size=36)
