"""Compares MaPeT, PIM and MIM with arrays that the official MaPeT code computed in float64.

    python -m tests.reference.golden tests/data/golden_mapet.npz [more files ...]

A file holds cases, told apart by the prefix of their arrays: networks (weights, images, permutations, and what came of
them: masks, both streams after every block, logits, loss, gradients) or masks alone. Printed is the largest difference
of each array; the exit code is 1 if one is beyond its tolerance.

The official order of rows is raster: class token, patches, then targets by increasing patch. Ours follows the
permutation.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from models.masking import two_stream_attention_mask
from models.objectives.mapet import MaPeT
from models.objectives.mim import MIM
from models.objectives.options import MaPeTOptions, MIMOptions, PIMOptions
from models.objectives.permuted import PermutedObjective
from models.objectives.pim import PIM
from models.vit.trunk import drop_path_rates, run_block

EXACT = 0.0
FLOAT64 = 1e-9
GRADIENT = 1e-5  # of the tensor's largest entry; stored in float32

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Difference:
    """`largest`: absolute; of gradients relative to the largest entry; of masks and labels the number of wrong ones."""

    array: str
    largest: float
    tolerance: float

    @property
    def passes(self) -> bool:
        return self.largest <= self.tolerance  # False for NaN


@dataclass(frozen=True)
class Orders:
    """From our order to the official one, for one image.

    Attributes:
        content: our row of each official content row.
        targets: our target of each official target.
    """

    content: Tensor
    targets: Tensor

    @classmethod
    def of(cls, permutation: Tensor, context: int) -> "Orders":
        targets = permutation[context:].argsort()
        patches = len(permutation)
        return cls(torch.cat([torch.zeros(1).long(), 1 + permutation.argsort(), 1 + patches + targets]), targets)


def check_file(path: Path) -> tuple[list[Difference], list[str]]:
    """Return the difference of every array that is compared, and the names of results that nothing was compared
    with."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    differences: list[Difference] = []
    for case in sorted({name.split("/", 1)[0] for name in arrays}):
        own = {name.split("/", 1)[1]: array for name, array in arrays.items() if name.startswith(f"{case}/")}
        check = check_network if "images" in own else check_masks
        differences += [Difference(f"{case}/{d.array}", d.largest, d.tolerance) for d in check(own)]
    compared = {difference.array for difference in differences}
    inputs = ("config", "perm", "tokens", "images", "droppath_keep")
    left = [n for n in arrays if n not in compared and n.split("/", 1)[1] not in inputs and "/w/" not in n]
    return differences, left


def check_masks(case: Arrays) -> Iterator[Difference]:
    """Yield a case of permutations and packed masks."""
    patches, cutting_point = (int(x) for x in case["config"][:2])
    unpacked = {"is_target": case["is_target"]}
    keys, targets = 2 * patches + 1 - (cutting_point - 1), patches - (cutting_point - 1)
    for name, rows in (("query_visible", targets), ("content_visible", keys)):
        bits = np.unpackbits(case[f"{name}_bits"], axis=1)[:, : rows * keys]
        unpacked[f"{name}_bits"] = bits.reshape(-1, rows, keys).astype(bool)
    ours = official_masks(torch.from_numpy(case["perm"]), context=cutting_point - 1)
    for name, mask in ours.items():
        yield exact(
            name if name in unpacked else f"{name}_bits", mask, unpacked.get(name, unpacked.get(f"{name}_bits"))
        )


def check_network(case: Arrays) -> Iterator[Difference]:
    """Yield a case with weights: everything the file has."""
    permutation = torch.from_numpy(case["perm"])
    context = int(case["config"][6]) - 1
    orders = [Orders.of(p, context) for p in permutation]
    mapet = load_objective("mapet", case)
    for name, mask in official_masks(permutation, context=context).items():
        yield exact(name, mask, case[name])
    keys = mapet.keys
    for name, mask in (("content", mapet.attention_mask[:keys]), ("query", mapet.attention_mask[keys:])):
        yield exact(f"{name}_visible_permuted", mask.expand(len(permutation), -1, -1), case[f"{name}_visible_permuted"])
    yield from check_streams(mapet, case, orders)
    yield from check_loss_and_gradients(mapet, case, orders)
    for name in ("mim", "pim"):
        yield from check_logits(load_objective(name, case), case, orders, prefix=f"{name}_")
    if "droppath_keep" in case:
        rates = torch.from_numpy(case["droppath_rates"])
        scales = torch.from_numpy(case["droppath_keep"]) / (1 - rates[:, None, None])
        ours = torch.tensor(drop_path_rates(mapet.backbone)).double()[:, 0]
        yield close("droppath_rates", ours, case["droppath_rates"], tolerance=1e-7)  # official: float32
        yield from check_logits(mapet, case, orders, prefix="droppath_", scales=scales)


@torch.no_grad()
def check_streams(mapet: PermutedObjective, case: Arrays, orders: list[Orders]) -> Iterator[Difference]:
    """Yield the content and query stream after every block, also where training does without them: the last block's
    content."""
    rows = mapet.rows(torch.from_numpy(case["images"]).double(), torch.from_numpy(case["perm"]))
    for i, block in enumerate(mapet.backbone.blocks):
        rows = run_block(block, rows, mapet.keys, mapet.attention_mask)
        content, query = rows[:, : mapet.keys], rows[:, mapet.keys :]
        yield close(f"h_block{i}", each(content, [o.content for o in orders]), case[f"h_block{i}"])
        yield close(f"g_block{i}", each(query, [o.targets for o in orders]), case[f"g_block{i}"])
    content = mapet.backbone.norm(rows[:, : mapet.keys])
    yield close("content_out", each(content, [o.content for o in orders]), case["content_out"])


def check_loss_and_gradients(mapet: PermutedObjective, case: Arrays, orders: list[Orders]) -> Iterator[Difference]:
    """Yield logits, loss and the loss's gradient by every weight."""
    yield from check_logits(mapet, case, orders)
    images, permutation = torch.from_numpy(case["images"]).double(), torch.from_numpy(case["perm"])
    targets = torch.from_numpy(case["tokens"]).gather(1, permutation[:, mapet.context :])
    logits = mapet.predict(images, permutation)
    yield close("logits_permuted", logits, case["logits_permuted"])
    yield close("nll_permuted", F.cross_entropy(logits.mT, targets, reduction="none"), case["nll_permuted"])
    yield exact("targets_permuted", targets, case["targets_permuted"])
    yield exact("targets", each(targets, [o.targets for o in orders]), case["targets"])
    mapet.score(mapet.features(images, permutation), targets).loss.backward()
    ours = to_official({name: p.grad for name, p in mapet.named_parameters()})
    for name in [name for name in case if name.startswith("grad/")]:
        expected = case[name].astype(np.float64)
        size = max(float(np.abs(expected).max()), 1e-30)
        largest = (ours[name.removeprefix("grad/")] - torch.from_numpy(expected)).abs().max().item()
        yield Difference(name, largest / size, GRADIENT)


@torch.no_grad()
def check_logits(
    objective: PermutedObjective,
    case: Arrays,
    orders: list[Orders],
    *,
    prefix: str = "",
    scales: Tensor | None = None,
) -> Iterator[Difference]:
    """Yield logits and loss; `scales` as stochastic depth would multiply the branches."""
    images, permutation = torch.from_numpy(case["images"]).double(), torch.from_numpy(case["perm"])
    logits = objective.predict(images, permutation, scales=scales)
    official = each(logits, [o.targets for o in orders]).mT
    yield close(f"{prefix}logits", official, case[f"{prefix}logits"])
    features = objective.features(images, permutation, scales=scales)
    targets = torch.from_numpy(case["tokens"]).gather(1, permutation[:, objective.context :])
    yield close(f"{prefix}loss", objective.score(features, targets).loss, case[f"{prefix}loss"])


def official_masks(permutation: Tensor, *, context: int) -> dict[str, Tensor]:
    """Return which rows are targets and who sees whom, for every image in the official order."""
    patches = permutation.shape[1]
    attention_mask = two_stream_attention_mask(patches, context, masks=True)
    content, query = attention_mask[: attention_mask.shape[1]], attention_mask[attention_mask.shape[1] :]
    orders = [Orders.of(p, context) for p in permutation]
    is_target = torch.zeros(len(permutation), 1 + patches, dtype=torch.bool)
    return {
        "is_target": is_target.scatter(1, 1 + permutation[:, context:], True),
        "query_visible": torch.stack([query[o.targets][:, o.content] for o in orders]),
        "content_visible": torch.stack([content[o.content][:, o.content] for o in orders]),
    }


def load_objective(name: str, case: Arrays) -> PermutedObjective:
    """Return an objective in float64 with the weights of the case."""
    image, patch, width, depth, heads, vocabulary, cutting_point, _, patches = (int(x) for x in case["config"][:9])
    backbone = VisionTransformer(
        img_size=image,
        patch_size=patch,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        num_classes=0,
        init_values=1.0 if "w/blocks.0.ls1.gamma" in case else None,
        drop_path_rate=float(case["droppath_rates"][-1]) if "droppath_rates" in case else 0.0,
    )
    objective: PermutedObjective
    if name == "mapet":
        objective = MaPeT(backbone, vocabulary, MaPeTOptions(cutting_point=cutting_point), seed=0)
    elif name == "pim":
        objective = PIM(backbone, vocabulary, PIMOptions(cutting_point=cutting_point), seed=0)
    else:
        objective = MIM(backbone, vocabulary, MIMOptions(masked=patches - cutting_point + 1), seed=0)
    weights = {n.removeprefix("w/"): torch.from_numpy(a) for n, a in case.items() if n.startswith("w/")}
    objective.load_state_dict(from_official(weights), strict=True)
    return objective.double().eval()


def from_official(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return names and shapes of ours: timm keeps queries, keys and values in one weight."""
    ours = {}
    for name, weight in weights.items():
        if ".attn.q." in name:
            weight = torch.cat([weight, weights[name.replace(".q.", ".kv.")]])
        if ".attn.kv." not in name:
            ours[_our_name(name.replace(".attn.q.", ".attn.qkv."))] = weight
    return ours


def to_official(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the reverse of `from_official`."""
    official = {}
    for name, weight in weights.items():
        name = {"mask_token": "mask_positional_token"}.get(name, name)
        name = name.removeprefix("backbone.").replace("head.", "decoder.")
        if ".attn.qkv." in name:
            width = len(weight) // 3
            official[name.replace(".qkv.", ".q.")] = weight[:width]
            official[name.replace(".qkv.", ".kv.")] = weight[width:]
        else:
            official[name] = weight
    return official


def _our_name(name: str) -> str:
    if name == "mask_positional_token":
        return "mask_token"
    return name.replace("decoder.", "head.") if name.startswith("decoder.") else f"backbone.{name}"


def each(rows: Tensor, index: list[Tensor]) -> Tensor:
    """Return every image's rows in its own order."""
    return torch.stack([r[i] for r, i in zip(rows, index, strict=True)])


def close(name: str, ours: Tensor, expected: np.ndarray, *, tolerance: float = FLOAT64) -> Difference:
    if tuple(ours.shape) != expected.shape:
        return Difference(name, float("inf"), tolerance)
    return Difference(name, float(np.abs(ours.detach().numpy() - expected).max()), tolerance)


def exact(name: str, ours: Tensor, expected: np.ndarray) -> Difference:
    if tuple(ours.shape) != expected.shape:
        return Difference(name, float("inf"), EXACT)
    return Difference(name, float((ours.numpy() != expected).sum()), EXACT)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+")
    failed = False
    for path in parser.parse_args(arguments).files:
        differences, left = check_file(path)
        for d in differences:
            print(f"{path.name}:{d.array:44} {d.largest:9.2e} {'' if d.passes else f'BEYOND {d.tolerance:.0e}'}")  # noqa: T201
        beyond = sum(not d.passes for d in differences)
        print(f"{path.name}: {len(differences)} arrays, {beyond} beyond tolerance, not compared: {left or 'none'}")  # noqa: T201
        failed |= beyond > 0 or not differences
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
