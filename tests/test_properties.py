"""What holds for every input, tried on many: masks, permutations, samples, stores, fingerprints."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.masking import corruption_seeds, permutations, two_stream_attention_mask
from models.objectives.block_masking import block_masks, block_order
from models.options import Options
from pipeline.configuration.config import ReproduceConfig
from pipeline.data.decoding_options import DecodingOptions
from pipeline.data.source_options import ImageSourceOptions
from pipeline.encoding.sampling import plan_sample
from pipeline.engine.fingerprint import defining_options, recipe
from storage.shards import ShardFolder
from storage.token_store import NO_TOKEN, TokenStore, write_token_store

SEEDS = st.integers(0, 2**31 - 1)


@given(SEEDS, st.integers(0, 1000), st.integers(1, 50), st.integers(1, 200))
def test_permutations_are_permutations_of_their_own_image(seed: int, epoch: int, images: int, patches: int) -> None:
    seeds = corruption_seeds(seed, epoch, torch.arange(images))
    order = permutations(seeds, patches)
    assert torch.equal(order.sort(dim=1).values, torch.arange(patches).expand(images, patches))
    assert torch.equal(permutations(seeds[-1:], patches), order[-1:])


@settings(deadline=None)
@given(SEEDS, st.integers(1, 20), st.integers(2, 16), st.integers(2, 16), st.data())
def test_block_masks_hide_exactly_so_many_patches_of_any_grid(
    seed: int, images: int, rows: int, columns: int, data: st.DataObject
) -> None:
    masked = data.draw(st.integers(1, rows * columns - 1))
    seeds = corruption_seeds(seed, 0, torch.arange(images))
    masks = block_masks(seeds, (rows, columns), masked)
    assert (masks.sum(1) == masked).all()
    order = block_order(seeds, (rows, columns), masked)
    assert torch.equal(order.sort(dim=1).values, torch.arange(rows * columns).expand(images, -1))
    assert masks.gather(1, order[:, -masked:]).all(), "the hidden ones come last"


@settings(deadline=None)
@given(st.integers(2, 60), st.data())
def test_every_predicted_patch_sees_each_position_once_and_never_itself(patches: int, data: st.DataObject) -> None:
    context = data.draw(st.integers(0, patches - 1))
    predicted = patches - context
    attention_mask = two_stream_attention_mask(patches, context, masks=True)
    assert attention_mask.shape == (1 + patches + 2 * predicted, 1 + patches + predicted)
    seen = attention_mask[:, : 1 + patches].int()
    seen[:, 1 + context :] += attention_mask[:, 1 + patches :].int()
    assert (seen == 1).all()
    queries = attention_mask[-predicted:, 1 + context : 1 + patches]
    before = torch.ones(predicted, predicted, dtype=torch.bool).tril(-1)
    assert torch.equal(queries, before), "a predicted patch sees those before it, and neither itself nor those after it"


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 200), st.integers(1, 30), st.floats(0.001, 1), SEEDS, st.randoms(use_true_random=False))
def test_the_sample_depends_on_no_order_and_grows_without_letting_go(
    images: int, patches: int, fraction: float, seed: int, shuffler: object
) -> None:
    ids = np.random.default_rng(seed).choice(2**62, images, replace=False).astype(np.uint64)
    order = list(range(images))
    shuffler.shuffle(order)  # type: ignore[attr-defined]

    def chosen(of: np.ndarray, share: float) -> set[tuple[int, int]]:
        plan = plan_sample(of, patches=patches, fraction=share, seed=seed)
        return set(zip(of[plan.positions].tolist(), plan.patches.tolist(), strict=True))

    sample = chosen(ids, fraction)
    assert len(sample) == max(1, round(fraction * images * patches))
    assert chosen(ids[order], fraction) == sample
    assert sample <= chosen(ids, min(1.0, fraction * 1.5)), "a larger sample has the smaller one in it"


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 300), st.integers(1, 20), st.integers(2, 65_535), st.integers(1, 9), SEEDS)
def test_a_token_store_gives_back_any_tokens_and_statuses_whatever_the_parts(
    images: int, patches: int, vocabulary: int, parts: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    status = random.choice([0, 0, 0, 1, 2, 3, 4, 5], images).astype(np.uint8)
    tokens = random.integers(0, vocabulary, (images, patches)).astype(np.uint16)
    tokens[status != 0] = NO_TOKEN
    pieces = np.array_split(random.permutation(images), parts)
    with TemporaryDirectory() as folder:
        path = Path(folder)
        scattered = ((rows, tokens[rows], status[rows]) for rows in pieces)
        write_token_store(path, scattered, images=images, patches=patches, attributes={"vocabulary": vocabulary})
        store = TokenStore(path)
        assert (store.load() == tokens).all()
        assert (store.status == status).all()
        assert (store.decoded(path / "copies", "0" * 64) == tokens).all()


@settings(deadline=None, max_examples=30)
@given(st.binary(min_size=1, max_size=40), st.data())
def test_a_shard_record_that_is_anything_else_than_it_was_does_not_count(text: bytes, data: st.DataObject) -> None:
    import pyarrow as pa

    schema = pa.schema([("row", pa.int64())])
    with TemporaryDirectory() as folder:
        shards = ShardFolder(Path(folder), "fingerprint")
        with shards.write(0, {"part": schema}) as writers:
            writers["part"].write_batch(pa.record_batch([pa.array([1, 2, 3], pa.int64())], schema=schema))
        assert shards.is_done(0)
        [part] = Path(folder).glob("part/*.arrow")
        whole = bytearray(part.read_bytes())
        place = data.draw(st.integers(0, len(whole) - 1))
        whole[place] ^= data.draw(st.integers(1, 255))
        part.write_bytes(whole)
        assert not shards.is_done(0)
        [record] = Path(folder).glob("units/*.json")
        record.write_bytes(text)
        assert not shards.is_done(0)


OPTIONS: tuple[Options, ...] = (
    DecodingOptions(),
    ImageSourceOptions(path="/here"),
    ReproduceConfig().objectives.mapet,
    ReproduceConfig().training,
)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: type(options).__name__)
def test_the_order_of_options_does_not_matter_and_each_defining_one_does(options: Options) -> None:
    chosen = defining_options(options)
    made = recipe("stage", 1, chosen, images="0" * 64).fingerprint
    assert recipe("stage", 1, dict(reversed(chosen.items())), images="0" * 64).fingerprint == made
    assert recipe("stage", 1, json.loads(json.dumps(chosen)), images="0" * 64).fingerprint == made
    for name in chosen:
        other = {**chosen, name: "another value"}
        assert recipe("stage", 1, other, images="0" * 64).fingerprint != made, name
    assert recipe("stage", 1, chosen, images="1" * 64).fingerprint != made
    for name in type(options).model_fields.keys() - chosen.keys():
        changed = options.model_copy(update={name: "another value"})
        assert recipe("stage", 1, defining_options(changed), images="0" * 64).fingerprint == made, name
