"""The learner of a VQ-KD: its loss, what moves and what does not, and the checkpoint that it leaves."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from models.clip.encoder import load_clip
from models.clip.options import ClipOptions
from models.encoders.base import PatchEncoder
from models.errors import ModelError
from models.tokenizers.vqkd import load_vqkd
from models.vqkd.checkpoint import read_vqkd
from models.vqkd.learner import VQKDLearner
from models.vqkd.options import VQKDOptions
from tests.models.vit_clips import write_vit_clip
from tests.models.vqkd_learners import SEEDS, images, learner_of
from tests.tiny_clip import write_tiny_clip
from tests.tiny_vqkd import vqkd_shapes


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> PatchEncoder:
    """64 px, 4 x 4 patches of 128 numbers."""
    model = write_tiny_clip(tmp_path_factory.mktemp("clip"))
    return load_clip(ClipOptions(model=model, dilate_last_stage=True, precision="fp32"))


def train(learner: VQKDLearner, steps: int, *, rate: float = 1e-3) -> list[float]:
    optimizer = torch.optim.AdamW(learner.parameter_groups(1e-4), lr=rate)
    losses = []
    for _ in range(steps):
        output = learner(images(), SEEDS)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        learner.finish_step(lambda statistics: statistics)
        losses.append(output.loss.item())
    return losses


# ------------------------------------------------------------------------------------------------------------ loss


def test_the_loss_is_one_minus_the_cosine_to_the_teacher_plus_weighted_commitment(teacher: PatchEncoder) -> None:
    learner = learner_of(teacher, commitment=0.25).eval()
    codes = learner.codebook.codes
    z = learner.vectors(images())
    nearest = (z.double() @ codes.double().T).argmax(-1)
    seen = codes[nearest].transpose(1, 2).reshape(6, 8, 4, 4)
    patches = learner.decoder.fc_norm(learner.decoder.forward_features(seen)[:, 1:])
    told, wanted = learner.decode_task_layer(patches).double(), teacher(images()).double()
    cosine = ((told * wanted).sum(-1) / told.norm(dim=-1) / wanted.norm(dim=-1)).mean()
    commitment = (codes[nearest].double() - z.double()).square().mean()
    output = learner(images(), SEEDS)
    assert output.loss.item() == pytest.approx((1 - cosine + 0.25 * commitment).item(), abs=1e-5)
    assert output.metrics["cosine"].item() == pytest.approx(cosine.item(), abs=1e-5)
    assert output.metrics["commitment"].item() == pytest.approx(commitment.item(), abs=1e-6)
    assert torch.equal(learner.tokens(images()), nearest)


def test_the_gradient_passes_the_choice_of_a_code_as_if_it_were_not_there(teacher: PatchEncoder) -> None:
    learner, kept = learner_of(teacher, commitment=0.0), []
    learner.encode_task_layer.register_forward_hook(lambda _, __, z: z.retain_grad() or kept.append(z))
    learner.decoder.patch_embed.register_full_backward_hook(lambda _, to_input, __: kept.append(to_input[0]))
    learner(images(), SEEDS).loss.backward()
    before_norm, of_codes = kept
    of_codes = of_codes.flatten(2).transpose(1, 2)
    z = F.normalize(before_norm.detach(), dim=-1)
    through_the_norm = (of_codes - z * (z * of_codes).sum(-1, keepdim=True)) / before_norm.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(before_norm.grad, through_the_norm, atol=1e-6, rtol=1e-3)
    assert before_norm.grad.abs().max() > 0


def test_training_brings_the_decoded_codes_to_what_the_teacher_sees(teacher: PatchEncoder) -> None:
    losses = train(learner_of(teacher), 60)
    assert losses[-1] < 0.5 * losses[0]


def test_a_vision_transformer_teaches_as_well(tmp_path: Path) -> None:
    teacher = load_clip(ClipOptions(model=write_vit_clip(tmp_path), precision="fp32"))
    learner = learner_of(teacher)
    assert learner.decode_task_layer[2].out_features == teacher.width == 32
    losses = train(learner, 60)
    assert losses[-1] < 0.5 * losses[0]


def test_codes_and_loss_are_float32_whatever_autocast_is_around(teacher: PatchEncoder) -> None:
    learner, seen = learner_of(teacher), []
    learner.encode_task_layer.register_forward_hook(lambda _, __, z: seen.append(z.dtype))
    learner.encoder.blocks[0].mlp.fc1.register_forward_hook(lambda _, __, x: seen.append(x.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = learner(images(), SEEDS)
    assert seen == [torch.bfloat16, torch.float32]
    assert output.loss.dtype == torch.float32


def test_weights_that_are_not_finite_give_such_a_loss_for_the_trainer_to_find(teacher: PatchEncoder) -> None:
    learner = learner_of(teacher)
    learner.encode_task_layer[2].bias.data[0] = torch.inf
    assert not learner(images(), SEEDS).loss.isfinite()


# ------------------------------------------------------------------------------------------------- what moves


def test_only_training_counts_and_only_a_finished_step_moves_the_codes(teacher: PatchEncoder) -> None:
    learner = learner_of(teacher)
    before = learner.codebook.codes.clone()

    def moved() -> bool:
        learner.finish_step(lambda statistics: statistics)
        return not torch.equal(learner.codebook.codes, before)

    learner.eval()(images(), SEEDS)
    assert not moved()
    learner.train()(images(), SEEDS)
    assert torch.equal(learner.codebook.codes, before)
    assert moved()


def test_keys_get_no_bias_however_long_the_training(teacher: PatchEncoder) -> None:
    learner = learner_of(teacher)
    train(learner, 5)
    for tower in (learner.encoder, learner.decoder):
        queries, keys, values = tower.blocks[0].attn.qkv.bias.chunk(3)
        assert not keys.any()
        assert queries.all()
        assert values.all()


def test_the_teacher_is_no_part_of_the_learner_and_stays_as_it_was(teacher: PatchEncoder) -> None:
    learner = learner_of(teacher)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    train(learner, 2)
    own = {id(tensor) for tensor in (*learner.parameters(), *learner.buffers())}
    assert not own & {id(tensor) for tensor in (*teacher.parameters(), *teacher.buffers())}
    assert not any("teacher" in name or "trunk" in name for name in learner.state_dict())
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


def test_weights_come_from_the_seed_alone(teacher: PatchEncoder) -> None:
    random = torch.random.get_rng_state()
    first, again, other = (learner_of(teacher, seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    drawn = ("encoder.pos_embed", "decoder.blocks.0.mlp.fc1.weight", "encode_task_layer.2.weight", "codebook.codes")
    assert not any(torch.equal(first[name], other[name]) for name in drawn)


def test_matrices_decay_but_positions_class_tokens_and_biases_do_not(teacher: PatchEncoder) -> None:
    learner = learner_of(teacher)
    decays = {id(p): group["weight_decay"] for group in learner.parameter_groups(0.1) for p in group["params"]}
    for name, parameter in learner.named_parameters():
        spared = name.endswith(("pos_embed", "cls_token", "bias")) or parameter.ndim == 1
        assert decays[id(parameter)] == (0 if spared else 0.1), name


# --------------------------------------------------------------------------------------------------------- sizes


def test_a_student_of_another_size_sees_the_same_pixels_resized(teacher: PatchEncoder) -> None:
    small, large = learner_of(teacher), learner_of(teacher, image_size=64, patch_size=16)
    shrunk = F.interpolate(images().float(), size=(32, 32), mode="bicubic", antialias=True).clamp(0, 255)
    torch.testing.assert_close(small._student_pixels(images()), shrunk / 127.5 - 1, atol=1e-6, rtol=0)
    torch.testing.assert_close(large._student_pixels(images()), images() / 127.5 - 1, atol=1e-6, rtol=0)


def test_pixels_of_another_size_than_the_teachers_are_refused(teacher: PatchEncoder) -> None:
    with pytest.raises(ModelError, match=r"\[6, 3, 32, 32\], expected torch.uint8 \[B, 3, 64, 64\]"):
        learner_of(teacher)(images(size=32), SEEDS)


@pytest.mark.parametrize("network", [{"image_size": 64}, {"patch_size": 16}, {"patch_size": 7}])
def test_other_patches_than_the_teachers_are_refused_with_what_to_set(
    network: dict[str, int], teacher: PatchEncoder
) -> None:
    expected = (
        r"sees 4 x 4 patches of 64 pixels, .* set fit_vqkd.network.image_size to 4 times fit_vqkd.network.patch_size"
    )
    with pytest.raises(ModelError, match=expected):
        learner_of(teacher, **network)


# ---------------------------------------------------------------------------------------------------- checkpoint


def test_the_checkpoint_has_the_published_tensors_and_gives_the_learners_tokens(
    teacher: PatchEncoder, tmp_path: Path
) -> None:
    learner = learner_of(teacher, image_size=64, patch_size=16)
    train(learner, 5)
    state = learner.checkpoint_state()
    sizes = {"width": 64, "depth": 1, "patch": 16, "patches": 16, "vocabulary": 24, "code_width": 8}
    published = vqkd_shapes(**sizes, decoder_depth=1, teacher_width=128)
    assert {name: list(tensor.shape) for name, tensor in state.items()} == published
    torch.save({"model": state}, tmp_path / "vqkd.pth")
    assert torch.equal(read_vqkd(tmp_path / "vqkd.pth", image_size=64).codebook.norm(dim=1).round(), torch.ones(24))
    options = VQKDOptions(checkpoint=str(tmp_path / "vqkd.pth"), image_size=64, precision="fp32")
    tokens = load_vqkd(options)(images(40))
    assert torch.equal(tokens, learner.tokens(images(40)))
    assert len(tokens.unique()) > 1


def test_a_checkpoint_is_a_copy_that_later_steps_leave_alone(teacher: PatchEncoder) -> None:
    learner = learner_of(teacher)
    state = learner.checkpoint_state()
    before = {name: tensor.clone() for name, tensor in state.items()}
    train(learner, 2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.items())
