"""VQ-KD tokens against an independent computation in float64; checkpoints are read exactly or refused by name."""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from models.errors import ModelError
from models.tokenizers import vqkd
from models.tokenizers.vqkd import VQKDTokenizer, load_vqkd
from models.vqkd.checkpoint import blank_vqkd, build_vqkd, read_vqkd
from models.vqkd.options import PUBLISHED, VQKDOptions, VQKDSizes
from tests.tiny_vqkd import vqkd_shapes, vqkd_state, write_tiny_vqkd

SIZE = 24  # pixels: 3 x 3 patches of 8


def write(path: Path, state: dict[str, Tensor]) -> Path:
    torch.save({"model": state}, path)
    return path


def load(path: Path | str, **options: object) -> VQKDTokenizer:
    return load_vqkd(VQKDOptions(checkpoint=str(path), **{"image_size": SIZE, "precision": "fp32", **options}))


@pytest.fixture
def tokenizer(tmp_path: Path) -> VQKDTokenizer:
    return load(write_tiny_vqkd(tmp_path / "vqkd.pth"))


def images(count: int, *, largest: int = 255) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, largest + 1, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)


def expected_ids(state: dict[str, Tensor], pictures: Tensor) -> Tensor:
    """Compute BEiT v2's encoding in float64, head by head, queries, keys and values apart; the nearest code by
    distance."""
    state = {name: tensor.double() for name, tensor in state.items()}

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def attention(x: Tensor, name: str) -> Tensor:
        of_query, of_key, of_value = state[f"{name}.qkv.weight"].chunk(3)
        query = x @ of_query.T + state[f"{name}.q_bias"]
        key = x @ of_key.T
        value = x @ of_value.T + state[f"{name}.v_bias"]
        seen = []
        for start in range(0, x.shape[-1], 64):
            head = slice(start, start + 64)
            scores = query[..., head] @ key[..., head].mT / math.sqrt(64)
            seen.append(scores.softmax(dim=-1) @ value[..., head])
        return linear(torch.cat(seen, dim=-1), f"{name}.proj")

    kernel = state["encoder.patch_embed.proj.weight"]
    pixels = pictures.double() / 127.5 - 1
    patches = F.conv2d(pixels, kernel, state["encoder.patch_embed.proj.bias"], stride=kernel.shape[-1]).flatten(2).mT
    x = torch.cat([state["encoder.cls_token"].expand(len(patches), -1, -1), patches], dim=1)
    x = x + state["encoder.pos_embed"]
    for block in sorted({name[: len("encoder.blocks.0")] for name in state if name.startswith("encoder.blocks.")}):
        x = x + attention(norm(x, f"{block}.norm1"), f"{block}.attn")
        hidden = linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")
        x = x + linear(hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2, f"{block}.mlp.fc2")
    z = linear(linear(norm(x[:, 1:], "encoder.fc_norm"), "encode_task_layer.0").tanh(), "encode_task_layer.2")
    z = z / z.square().sum(-1, keepdim=True).sqrt()
    return (z[:, :, None] - state["quantize.embedding.weight"]).square().sum(-1).argmin(-1)


# --------------------------------------------------------------------------------------------------------- tokens


def test_tokens_are_those_of_an_independent_computation(tokenizer: VQKDTokenizer) -> None:
    tokens, expected = tokenizer(images(12)), expected_ids(vqkd_state(), images(12))
    assert torch.equal(tokens, expected)
    assert len(expected.unique()) > 20
    assert (tokens.dtype, tokens.shape) == (torch.int64, (12, 9))


def test_the_tokenizer_says_what_it_wants_and_gives(tokenizer: VQKDTokenizer) -> None:
    assert (tokenizer.name, tokenizer.vocabulary, tokenizer.grid) == ("vqkd", 60, (3, 3))
    wanted = tokenizer.preprocessing
    assert (wanted.image_size, wanted.mean, wanted.std, wanted.interpolation) == (
        SIZE,
        (0.5,) * 3,
        (0.5,) * 3,
        "bicubic",
    )


def test_tokens_do_not_depend_on_the_batch_size(tokenizer: VQKDTokenizer) -> None:
    whole = tokenizer(images(7))
    for size in (1, 3, 4):
        assert torch.equal(torch.cat([tokenizer(part) for part in images(7).split(size)]), whole)


def test_encoding_leaves_no_trace(tokenizer: VQKDTokenizer) -> None:
    before = {name: tensor.clone() for name, tensor in tokenizer.state_dict().items()}
    random = torch.random.get_rng_state()
    first = tokenizer.train()(images(3))
    assert torch.equal(tokenizer(images(3)), first)
    assert not first.requires_grad
    assert not any(module.training for module in tokenizer.modules())
    assert torch.equal(torch.random.get_rng_state(), random)
    after = tokenizer.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_loading_draws_no_random_number(tmp_path: Path) -> None:
    path, random = write_tiny_vqkd(tmp_path / "vqkd.pth"), torch.random.get_rng_state()
    load(path)
    assert torch.equal(torch.random.get_rng_state(), random)


def test_a_dark_image_is_not_scaled_up_to_a_bright_one(tokenizer: VQKDTokenizer) -> None:
    dark = images(4, largest=1)
    expected = expected_ids(vqkd_state(), dark)
    assert torch.equal(tokenizer(dark), expected)
    assert not torch.equal(expected, expected_ids(vqkd_state(), dark * 255))  # what the released guess would see
    with_a_bright_one = torch.cat([dark, images(1)])
    assert torch.equal(tokenizer(with_a_bright_one)[:4], expected)


def test_of_equal_codes_the_lowest_id_wins(tmp_path: Path) -> None:
    state = vqkd_state()
    codebook = state["quantize.embedding.weight"]
    state["quantize.embedding.weight"] = torch.cat([codebook, codebook.flip(0), codebook])
    tokens = load(write(tmp_path / "vqkd.pth", state))(images(12))
    assert torch.equal(tokens, expected_ids(vqkd_state(), images(12)))


def test_blocks_bound_the_memory_without_changing_a_token(
    tokenizer: VQKDTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tokenizer(images(5))
    monkeypatch.setattr(vqkd, "BLOCK_NUMBERS", 7 * tokenizer.vocabulary)  # 45 rows: six blocks of 7 and one of 3
    assert torch.equal(tokenizer(images(5)), whole)


def test_a_patch_without_a_finite_code_gets_no_token_and_its_neighbours_keep_theirs(tokenizer: VQKDTokenizer) -> None:
    before = tokenizer(images(2))
    place = (torch.tensor(1), torch.tensor(1 + 4), torch.tensor(0))  # after the class token
    tokenizer.encoder.blocks[-1].register_forward_hook(lambda _, __, x: x.index_put(place, torch.tensor(torch.inf)))
    after = tokenizer(images(2))
    assert after[1, 4] == -1
    assert (after != before).sum() == 1


def test_an_outer_autocast_turns_no_token(tokenizer: VQKDTokenizer) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(tokenizer(images(12)), expected_ids(vqkd_state(), images(12)))


def test_codes_are_float32_whatever_the_encoder_computes_in(tmp_path: Path) -> None:
    tokenizer, seen = load(write_tiny_vqkd(tmp_path / "vqkd.pth"), precision="bf16"), []
    tokenizer.task_layer[0].register_forward_hook(lambda _, came, gave: seen.extend([came[0].dtype, gave.dtype]))
    tokenizer.encoder.blocks[0].mlp.fc1.register_forward_hook(lambda _, __, gave: seen.append(gave.dtype))
    tokenizer(images(1))
    assert seen == [torch.bfloat16, torch.float32, torch.float32]


@pytest.fixture
def tf32_allowed() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("tf32_allowed")
def test_no_product_is_rounded_to_tf32_even_where_a_user_allows_it(tokenizer: VQKDTokenizer) -> None:
    products, seen = torch.backends.cuda.matmul, []
    for layer in (tokenizer.encoder.blocks[0].attn.qkv, tokenizer.task_layer[0]):
        layer.register_forward_hook(lambda *_: seen.append(products.fp32_precision))
    before = products.fp32_precision
    tokenizer(images(1))
    assert (before, seen, products.fp32_precision) == ("tf32", ["ieee", "ieee"], "tf32")


def test_images_of_another_size_are_refused(tokenizer: VQKDTokenizer) -> None:
    with pytest.raises(ModelError, match=r"came torch.uint8 \[2, 3, 16, 16\], expected torch.uint8 \[B, 3, 24, 24\]"):
        tokenizer(images(2)[..., :16, :16])


def test_the_digest_follows_what_tokens_depend_on_and_nothing_else(tmp_path: Path) -> None:
    def digest(changed: str = "", **options: object) -> str:
        state = vqkd_state()
        if changed:
            state[changed] = state[changed].flip(0)
        return load(write(tmp_path / f"changed{changed}.pth", state), **options).digest

    depends_on = ["encoder.blocks.1.attn.v_bias", "encode_task_layer.2.bias", "quantize.embedding.weight"]
    digests = [digest(), digest(precision="bf16"), *(digest(name) for name in depends_on)]
    assert len(set(digests)) == 5
    assert digest("decoder.fc_norm.bias") == digest("quantize.embedding.embed_avg") == digests[0]


def test_a_task_layer_and_a_codebook_of_two_checkpoints_are_refused() -> None:
    parts = build_vqkd(VQKDSizes(width=64, depth=1), image_size=16)
    parts.task_layer[2] = nn.Linear(64, 16, device="meta")
    with pytest.raises(ModelError, match=r"\[8192, 32\] does not belong to a task layer with 16 channels"):
        VQKDTokenizer(parts)


# ---------------------------------------------------------------------------------------------------- checkpoints


def described(shapes: dict[str, list[int]]) -> dict[str, torch.Size]:
    training = ("decoder.", "decode_task_layer.", "quantize.cluster_size", "quantize.embedding.")
    read = {n: s for n, s in shapes.items() if n == "quantize.embedding.weight" or not n.startswith(training)}
    return {name: torch.Size(shape) for name, shape in read.items()}


@pytest.mark.parametrize(("decoder_depth", "teacher_width", "tensors"), [(3, 512, 220), (1, 512, 194), (1, 768, 194)])
def test_the_published_layouts_are_those_of_the_network(decoder_depth: int, teacher_width: int, tensors: int) -> None:
    sizes = {"width": 768, "depth": 12, "patch": 16, "patches": 196, "vocabulary": 8192, "code_width": 32}
    shapes = vqkd_shapes(**sizes, decoder_depth=decoder_depth, teacher_width=teacher_width)
    assert len(shapes) == tensors
    assert len(described(shapes)) == 162 + 4 + 1
    parts = blank_vqkd(described(shapes), image_size=224, source="published")
    assert all(tensor.is_meta for tensor in parts.encoder.state_dict().values())
    assert {block.attn.num_heads for block in parts.encoder.blocks} == {12}
    assert {m.eps for m in parts.encoder.modules() if isinstance(m, nn.LayerNorm)} == {1e-6}
    tokenizer = VQKDTokenizer(parts)
    assert (tokenizer.grid, tokenizer.vocabulary, tokenizer.preprocessing.image_size) == ((14, 14), 8192, 224)


def test_every_published_name_has_a_file_with_a_hash() -> None:
    for name, url in PUBLISHED.items():
        assert url.rpartition("/")[2].removeprefix(f"{name}-").removesuffix(".pth").isalnum()
    assert VQKDOptions().checkpoint in PUBLISHED


def test_a_state_dict_is_found_wherever_a_script_has_put_it(tmp_path: Path) -> None:
    state, arguments = vqkd_state(), argparse.Namespace(lr=5e-5)
    written = {
        "model.pth": {"model": state, "epoch": 99, "args": arguments, "optimizer": {"state": {}}},
        "state_dict.pth": {"state_dict": state},
        "bare.pth": state,
        "parallel.pth": {"model": {f"module.{name}": tensor for name, tensor in state.items()}},
    }
    for name, contents in written.items():
        torch.save(contents, tmp_path / name)
    save_file(state, tmp_path / "bare.safetensors")
    digests = {load(tmp_path / name).digest for name in [*written, "bare.safetensors"]}
    assert len(digests) == 1


def test_a_tokenizer_of_otherwise_scaled_pixels_is_refused_by_its_own_words(tmp_path: Path) -> None:
    for process_type in ("default", "imagenet_norm"):
        arguments = argparse.Namespace(process_type=process_type)
        torch.save({"model": vqkd_state(), "args": arguments}, tmp_path / f"{process_type}.pth")
    assert load(tmp_path / "default.pth").preprocessing.mean == (0.5, 0.5, 0.5)
    with pytest.raises(ModelError, match=r"imagenet_norm\.pth: trained with process_type='imagenet_norm'"):
        load(tmp_path / "imagenet_norm.pth")


def test_teacher_and_decoder_may_be_there_or_not(tmp_path: Path) -> None:
    state = vqkd_state()
    more = ("teacher_model.blocks.0.weight", "scaling_layer.shift", "loss.weight")
    without = {name: tensor for name, tensor in state.items() if not name.startswith("deco")}
    with_more = state | {name: torch.zeros(2) for name in more}
    digests = {load(write(tmp_path / "a.pth", each)).digest for each in (state, without, with_more)}
    assert len(digests) == 1


def test_float16_weights_become_float32_and_their_codes_unit_vectors(tmp_path: Path) -> None:
    state = {name: tensor.half() for name, tensor in vqkd_state().items()}
    parts = read_vqkd(write(tmp_path / "half.pth", state), image_size=SIZE)
    assert {tensor.dtype for tensor in (*parts.encoder.parameters(), parts.codebook)} == {torch.float32}
    torch.testing.assert_close(parts.codebook.norm(dim=1), torch.ones(60), atol=1e-6, rtol=0)


def refusal(path: Path, **options: object) -> str:
    with pytest.raises(ModelError) as refused:
        load(path, **options)
    return str(refused.value)


def test_a_checkpoint_that_does_not_fit_names_the_first_of_each_kind(tmp_path: Path) -> None:
    state = vqkd_state()
    del state["encoder.blocks.1.attn.q_bias"], state["encode_task_layer.0.bias"]
    state |= {"encoder.norm.weight": torch.zeros(128), "encoder.blocks.0.attn.v_bias": torch.zeros(64)}
    message = refusal(write(tmp_path / "odd.pth", state))
    assert f"{tmp_path / 'odd.pth'} is no VQ-KD of BEiT v2 128 wide, 2 blocks deep, for 24 pixels" in message
    assert "missing: encoder.blocks.1.attn.q_bias and 1 more; unexpected: encoder.norm.weight" in message
    assert "of another shape: encoder.blocks.0.attn.v_bias ([64] instead of [128])" in message


@pytest.mark.parametrize(
    ("old", "new", "missing"),
    [
        ("encoder.", "backbone.", "encoder.cls_token and 161 more"),
        ("encode_task_layer.", "head.", "encode_task_layer.0.weight and 3 more"),
        ("quantize.embedding.weight", "quantize.weight", "quantize.embedding.weight"),
        ("encoder.blocks.0.", "encoder.block.0.", "encoder.blocks.0.norm1.weight and 12 more"),
    ],
)
def test_renamed_tensors_are_named_by_both_names(old: str, new: str, missing: str, tmp_path: Path) -> None:
    def renamed(name: str) -> str:
        return new + name.removeprefix(old) if name.startswith(old) else name

    state = {renamed(name): tensor for name, tensor in vqkd_state(depth=12, width=64).items()}
    message = refusal(write(tmp_path / "renamed.pth", state))
    assert f"missing: {missing}; unexpected: {new}" in message


def test_a_block_that_is_not_there_is_missed(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in vqkd_state(depth=3).items() if ".blocks.1." not in name}
    message = refusal(write(tmp_path / "gap.pth", state))
    assert "missing: encoder.blocks.1.norm1.weight and 12 more" in message
    assert "unexpected: encoder.blocks.2.norm1.weight and 12 more" in message


def test_another_network_is_refused_by_its_tensors(tmp_path: Path) -> None:
    message = refusal(write(tmp_path / "vit.pth", {"cls_token": torch.zeros(1, 1, 64), "head.bias": torch.zeros(5)}))
    assert "missing: encoder.cls_token and 166 more; unexpected: cls_token and 1 more" in message


def test_a_checkpoint_for_another_image_size_says_which_to_set(tmp_path: Path) -> None:
    message = refusal(Path(write_tiny_vqkd(tmp_path / "vqkd.pth")), image_size=32)
    assert "of another shape: encoder.pos_embed ([1, 10, 128] instead of [1, 17, 128])" in message
    assert message.endswith("its positions are for 24 pixels: set vqkd.image_size to that")


def test_sizes_that_heads_or_patches_do_not_divide_are_refused(tmp_path: Path) -> None:
    assert "expected a multiple of 64" in refusal(Path(write_tiny_vqkd(tmp_path / "narrow.pth", width=96)))
    path = Path(write_tiny_vqkd(tmp_path / "vqkd.pth"))
    assert "patches that divide vqkd.image_size 25" in refusal(path, image_size=25)


@pytest.mark.parametrize("length", [0.0, 2.0, math.nan])
def test_a_codebook_of_no_unit_rows_is_refused(length: float, tmp_path: Path) -> None:
    state = vqkd_state()
    state["quantize.embedding.weight"][5] *= length
    message = refusal(write(tmp_path / "vqkd.pth", state))
    assert f"row 5 of quantize.embedding.weight has the length {length:.4g}, and 1 of 60 rows" in message


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "vqkd.pth", vqkd_state())
    path.write_bytes(path.read_bytes()[:-1000])
    assert "not a readable checkpoint" in refusal(path)


def test_a_file_with_a_published_name_and_other_contents_is_refused(tmp_path: Path) -> None:
    path = tmp_path / PUBLISHED["vqkd_encoder_base_decoder_1x768x12_dino"].rpartition("/")[2]
    assert "not as its name says" in refusal(write(path, vqkd_state()))


def test_a_checkpoint_that_is_nowhere_is_refused_with_the_published_names(tmp_path: Path) -> None:
    message = refusal(tmp_path / "none.pth")
    assert "vqkd.checkpoint: " in message
    assert "neither a file nor published" in message
    assert all(name in message for name in PUBLISHED)
