"""k-means: the same bits every time, the same codebook as FAISS, and a sentence instead of a dead process."""

import io
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError

from models.errors import ModelError
from models.kmeans.card_rows import CardRows
from models.kmeans.clustering import KMeansState, codebook_statistics, fit_kmeans, histogram_of_sizes
from models.kmeans.growing import LEAST_GAIN, draw_parts, parts_of, rows_visited
from models.kmeans.lloyd import Assigner, split_empty_clusters
from models.kmeans.options import CodebookOptions
from models.kmeans.rows import TILE_ROWS, SelectedRows, tile_borders
from tests.models.kmeans_rows import Rows, assert_same_bits, draw_rows, nearest_distances


def use_threads(count: int) -> None:
    torch.set_num_threads(count)
    faiss.omp_set_num_threads(count)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Inputs this small only wait for threads: torch and FAISS each bring an OpenMP whose idle threads spin."""
    torch_threads, faiss_threads = torch.get_num_threads(), faiss.omp_get_max_threads()
    use_threads(1)
    yield
    torch.set_num_threads(torch_threads)
    faiss.omp_set_num_threads(faiss_threads)


@pytest.fixture(scope="module")
def many_rows() -> np.ndarray:
    """Five tiles and a rest, the last of them larger than the others."""
    return draw_rows(5 * TILE_ROWS + 1234)


@pytest.fixture(scope="module")
def uneven_rows(many_rows: np.ndarray) -> np.ndarray:
    """Float32 over ten orders of magnitude: any other order of additions shows. (Float64 adds float16 exactly.)"""
    rng = np.random.default_rng(1)
    return (np.tile(many_rows, (1, 4)) * 10 ** rng.uniform(-9, 1, size=(len(many_rows), 64))).astype(np.float32)


# --- the same bits ---


@pytest.mark.parametrize("cap", [None, 300])
def test_the_block_size_does_not_change_a_bit(uneven_rows: np.ndarray, cap: int | None) -> None:
    options = CodebookOptions(vocabulary=50, iterations=3, redo=2, max_points_per_centroid=cap)
    expected = fit_kmeans(Rows(uneven_rows), options)
    for block_rows in (1, 5000, 2 * TILE_ROWS, 3 * TILE_ROWS):
        assert_same_bits(fit_kmeans(Rows(uneven_rows), options, block_rows=block_rows), expected)


def test_the_number_of_threads_does_not_change_a_bit(uneven_rows: np.ndarray) -> None:
    options = CodebookOptions(vocabulary=200, iterations=2)
    expected = fit_kmeans(Rows(uneven_rows), options)
    for threads in (2, 3):
        use_threads(threads)
        assert_same_bits(fit_kmeans(Rows(uneven_rows), options), expected)


@pytest.mark.parametrize("mode", ["lloyd", "growing"])
@pytest.mark.parametrize("cap", [None, 140])
def test_rows_kept_on_a_device_give_the_bits_of_a_store(cap: int | None, mode: str) -> None:
    values = draw_rows(2 * TILE_ROWS + 99)
    options = CodebookOptions(vocabulary=20, iterations=3, max_points_per_centroid=cap, mode=mode)
    kept = CardRows(torch.from_numpy(values))
    assert_same_bits(fit_kmeans(kept, options), fit_kmeans(Rows(values), options))


class BruteForce:
    """Nearest centroid by torch: the loop takes any exact search."""

    device = torch.device("cpu")

    def set_centroids(self, centroids: torch.Tensor) -> None:
        self.centroids = centroids

    def nearest(self, tile: torch.Tensor) -> torch.Tensor:
        return torch.cdist(tile, self.centroids, compute_mode="donot_use_mm_for_euclid_dist").argmin(dim=1)


@pytest.mark.parametrize("threads", [1, 3])
def test_vectors_are_summed_in_float64_in_the_order_of_their_rows(uneven_rows: np.ndarray, threads: int) -> None:
    use_threads(threads)
    centroids = uneven_rows[:20]
    search = BruteForce()
    sums = Assigner(search, Rows(uneven_rows), 0.0, 2 * TILE_ROWS).assign(centroids).sums.numpy()
    expected, reversed_order = np.zeros((2, 20, 64))
    labels = search.nearest(torch.from_numpy(uneven_rows)).numpy()
    np.add.at(expected, labels, uneven_rows.astype(np.float64))
    np.add.at(reversed_order, labels[::-1], uneven_rows[::-1].astype(np.float64))
    assert sums.tobytes() == expected.tobytes()
    assert sums.tobytes() != reversed_order.tobytes(), "these rows do not tell orders apart"


def test_another_seed_gives_another_codebook(many_rows: np.ndarray) -> None:
    first, second = (
        fit_kmeans(Rows(many_rows), CodebookOptions(vocabulary=50, iterations=2, seed=seed)) for seed in (1, 2)
    )
    assert not np.array_equal(first.centroids, second.centroids)


@pytest.mark.parametrize("cap", [None, 40])
def test_a_run_resumed_after_any_iteration_ends_with_the_same_bits(cap: int | None) -> None:
    rows = Rows(np.repeat(draw_rows(150, groups=8), 4, axis=0))
    options = CodebookOptions(vocabulary=12, iterations=5, redo=3, max_points_per_centroid=cap)
    states: list[KMeansState] = []
    expected = fit_kmeans(rows, options, on_iteration=states.append)
    assert len(states) == len(expected.history)
    assert {state.restart for state in states} == {0, 1, 2}
    for state in states:
        assert_same_bits(fit_kmeans(rows, options, resume=saved_and_loaded(state)), expected)


def saved_and_loaded(state: KMeansState) -> KMeansState:
    buffer = io.BytesIO()
    np.savez(buffer, **state.to_arrays())
    buffer.seek(0)
    with np.load(buffer, allow_pickle=False) as arrays:
        return KMeansState.from_arrays(arrays)


def test_four_and_six_iterations_are_ten(many_rows: np.ndarray) -> None:
    ten = CodebookOptions(vocabulary=60, iterations=10)
    states: list[KMeansState] = []
    fit_kmeans(Rows(many_rows), ten.model_copy(update={"iterations": 4}), on_iteration=states.append)
    resumed: list[KMeansState] = []
    result = fit_kmeans(Rows(many_rows), ten, resume=states[-1], on_iteration=resumed.append)
    assert [state.iteration for state in resumed] == [5, 6, 7, 8, 9, 10]
    assert_same_bits(result, fit_kmeans(Rows(many_rows), ten))


# --- growing samples ---

GROWING = CodebookOptions(vocabulary=12, iterations=9, redo=2, mode="growing")


@pytest.fixture(scope="module")
def growing_rows() -> Rows:
    """As many rows as it takes to begin on a quarter of them."""
    return Rows(draw_rows(2000, groups=8))


@pytest.mark.parametrize("cap", [None, 140])
def test_a_growing_run_has_the_same_bits_resumed_and_by_other_blocks(growing_rows: Rows, cap: int | None) -> None:
    options = GROWING.model_copy(update={"max_points_per_centroid": cap})
    states: list[KMeansState] = []
    expected = fit_kmeans(growing_rows, options, on_iteration=states.append)
    assert len(states) == len(expected.history)
    for state in states:
        assert_same_bits(fit_kmeans(growing_rows, options, resume=saved_and_loaded(state)), expected)
    assert_same_bits(fit_kmeans(growing_rows, options, block_rows=1), expected)


def test_parts_double_each_holds_the_one_before_and_costs_one_look_at_all() -> None:
    parts = draw_parts(100_003, 100, np.random.default_rng(0))
    assert list(parts) == [16, 8, 4, 2]
    for part, rows in parts.items():
        assert len(rows) == pytest.approx(100_003 / part, rel=1e-2)
        assert (np.diff(rows) > 0).all()
    for smaller, larger in pairwise(parts.values()):
        assert np.isin(smaller, larger).all()
    assert sum(rows_visited(100_003, 100, number) for number in range(30)) == pytest.approx(4 * 100_003, rel=1e-3)


@pytest.mark.parametrize(("vocabulary", "largest"), [(100, 16), (200, 8), (1_500, 2), (1_600, None)])
def test_a_part_with_too_few_rows_for_its_centroids_is_left_out(vocabulary: int, largest: int | None) -> None:
    assert next(iter(parts_of(100_000, vocabulary)), None) == largest


def test_a_growing_run_ends_at_the_first_whole_iteration_that_gains_little(growing_rows: Rows) -> None:
    result = fit_kmeans(growing_rows, GROWING.model_copy(update={"iterations": 500, "redo": 1}))
    whole = [record.inertia for record in result.history[len(parts_of(2000, 12)) :]]
    gains = [(before - after) / before for before, after in pairwise(whole)]
    assert len(gains) > 1
    assert all(gain >= LEAST_GAIN for gain in gains[:-1])
    assert gains[-1] < LEAST_GAIN
    assert result.inertia <= whole[-1]


def test_the_last_step_of_a_growing_run_goes_to_the_means(growing_rows: Rows) -> None:
    states: list[KMeansState] = []
    fit_kmeans(growing_rows, GROWING.model_copy(update={"redo": 1}), on_iteration=states.append)
    for before, after, is_mean in ((*states[-3:-1], False), (*states[-2:], True)):
        labels, _ = nearest_distances(growing_rows.values, before.centroids)
        means = [growing_rows.values[labels == cluster].astype(np.float64).mean(axis=0) for cluster in range(12)]
        assert np.allclose(after.centroids, means, atol=1e-5) == is_mean


def test_growing_reaches_lloyds_inertia_with_less_work(many_rows: np.ndarray) -> None:
    rows = Rows(many_rows)
    whole = fit_kmeans(rows, CodebookOptions(vocabulary=30, iterations=20))
    grown = fit_kmeans(rows, CodebookOptions(vocabulary=30, mode="growing"))
    visited = sum(rows_visited(len(rows), 30, record.iteration) for record in grown.history)
    assert visited < 0.5 * 20 * len(rows)
    assert grown.inertia < 1.02 * whole.inertia


# --- the right codebook ---


def test_it_agrees_with_faiss_kmeans_from_the_same_first_centroids(many_rows: np.ndarray) -> None:
    values = many_rows.astype(np.float32)
    first = np.ascontiguousarray(values[:: len(values) // 30][:30])
    kmeans = faiss.Kmeans(16, 30, niter=6, max_points_per_centroid=len(values))
    kmeans.train(values, init_centroids=first)
    options = CodebookOptions(vocabulary=30, iterations=6)
    result = fit_kmeans(Rows(many_rows), options, resume=KMeansState(0, 0, first))
    np.testing.assert_allclose(result.centroids, kmeans.centroids, atol=1e-5)
    np.testing.assert_allclose([record.inertia for record in result.history], kmeans.obj, rtol=1e-4)


def test_inertia_and_sizes_are_those_of_the_returned_centroids() -> None:
    values = draw_rows(3000)
    result = fit_kmeans(Rows(values), CodebookOptions(vocabulary=25, iterations=3))
    labels, squared = nearest_distances(values, result.centroids)
    assert result.inertia == pytest.approx(squared.sum(), rel=1e-9)
    assert result.sizes.tolist() == np.bincount(labels, minlength=25).tolist()
    assert result.inertia < result.history[-1].inertia


def test_inertia_survives_a_large_common_offset() -> None:
    values = draw_rows(3000).astype(np.float32) * 0.01 + 100  # float32 distances by |x|^2 - 2xc + |c|^2 lose it all
    result = fit_kmeans(Rows(values), CodebookOptions(vocabulary=2, iterations=1))
    squared = np.square(values.astype(np.float64)[:, None] - result.centroids.astype(np.float64)).sum(axis=2)
    assert squared.min(axis=1).sum() <= result.inertia * (1 + 1e-6) <= squared.max(axis=1).sum()


def test_the_history_describes_the_assignment_it_started_from() -> None:
    values = draw_rows(2000)
    states: list[KMeansState] = []
    result = fit_kmeans(Rows(values), CodebookOptions(vocabulary=20, iterations=2), on_iteration=states.append)
    labels, squared = nearest_distances(values, states[0].centroids)
    counts = np.bincount(labels, minlength=20)
    record = result.history[1]
    assert (record.restart, record.iteration) == (0, 1)
    assert record.inertia == pytest.approx(squared.sum(), rel=1e-9)
    assert record.used_share == np.mean(counts > 0)
    assert record.largest_share == counts.max() / 2000
    moved = np.square(states[1].centroids.astype(np.float64) - states[0].centroids).sum(axis=1)
    assert record.centroid_shift == pytest.approx(np.sqrt(moved.mean()))


def test_the_restart_of_lowest_final_inertia_wins() -> None:
    rows = Rows(draw_rows(800, groups=20))
    options = CodebookOptions(vocabulary=20, iterations=3, redo=6)
    result = fit_kmeans(rows, options)
    last_states = {state.restart: state for state in states_of(rows, options)}
    finals = [nearest_distances(rows.values, last_states[restart].centroids)[1].sum() for restart in range(6)]
    assert result.best_restart == int(np.argmin(finals))
    assert result.inertia == pytest.approx(min(finals), rel=1e-9)
    assert len(result.history) == 18


def states_of(rows: Rows, options: CodebookOptions) -> list[KMeansState]:
    states: list[KMeansState] = []
    fit_kmeans(rows, options, on_iteration=states.append)
    return states


def test_a_restart_ends_once_an_iteration_changes_nothing() -> None:
    values = np.repeat(np.eye(4, dtype=np.float16), 50, axis=0)
    values[::50] *= 1.5
    states = states_of(Rows(values), CodebookOptions(vocabulary=3, iterations=50))
    assert len(states) < 50
    assert states[-1].centroids.tobytes() == states[-2].centroids.tobytes()
    assert states[-1].history[-1].centroid_shift == 0
    assert all(record.centroid_shift > 0 for record in states[-1].history[:-1])


def test_as_many_rows_as_centroids_are_their_own_codebook() -> None:
    values = draw_rows(30)
    result = fit_kmeans(Rows(values), CodebookOptions(vocabulary=30, iterations=5))
    assert result.sizes.tolist() == [1] * 30
    assert sorted(result.centroids.tolist()) == sorted(values.tolist())
    assert result.inertia == pytest.approx(0, abs=1e-6)


# --- empty clusters and duplicates ---


def test_an_empty_cluster_takes_half_of_another_and_the_vocabulary_stays() -> None:
    values = draw_rows(1000, groups=10)
    first = values[:10].astype(np.float32)
    first[3] = 1000.0  # no vector is near
    states: list[KMeansState] = []
    options = CodebookOptions(vocabulary=10, iterations=3)
    result = fit_kmeans(Rows(values), options, resume=KMeansState(0, 0, first), on_iteration=states.append)
    assert result.history[0].splits == 1
    assert result.history[0].used_share == 0.9
    assert np.abs(states[0].centroids[3]).max() < 100
    assert (result.sizes > 0).all()
    assert len(result.centroids) == 10


def test_a_split_moves_both_halves_apart_and_shares_the_size() -> None:
    centroids = np.array([[2, 2, 2], [0, 0, 0], [7, 7, 7]], dtype=np.float32)
    table, splits = split_empty_clusters(centroids, np.array([5, 0, 1]), np.random.default_rng(0))
    assert splits == 1
    nudge = np.array([1, -1, 1]) / 1024
    np.testing.assert_allclose(table, [2 * (1 - nudge), 2 * (1 + nudge), [7, 7, 7]], rtol=1e-6)
    assert centroids[0].tolist() == [2, 2, 2], "the input is not written to"


def test_a_cluster_of_one_vector_is_never_split() -> None:
    centroids = np.arange(1, 9, dtype=np.float32).reshape(8, 1)
    sizes = np.array([1, 1, 1, 9, 1, 0, 0, 0])
    for seed in range(20):
        table, splits = split_empty_clusters(centroids, sizes, np.random.default_rng(seed))
        assert splits == 3
        assert table[[0, 1, 2, 4]].tolist() == centroids[[0, 1, 2, 4]].tolist()


def test_fewer_distinct_vectors_than_centroids_is_allowed_and_visible() -> None:
    values = np.repeat(draw_rows(10), 30, axis=0)
    result = fit_kmeans(Rows(values), CodebookOptions(vocabulary=20, iterations=4))
    assert result.centroids.shape == (20, 16)
    assert result.sizes.sum() == 300
    assert all(record.used_share <= 0.5 and record.splits >= 10 for record in result.history)


# --- what it reads ---


def test_a_float16_memory_map_gives_the_bits_of_float32_in_memory(tmp_path: Path, many_rows: np.ndarray) -> None:
    path = tmp_path / "features.npy"
    np.save(path, many_rows)
    options = CodebookOptions(vocabulary=40, iterations=3)
    mapped = Rows(np.load(path, mmap_mode="r"))
    assert_same_bits(fit_kmeans(mapped, options), fit_kmeans(Rows(many_rows.astype(np.float32)), options))


def test_no_block_is_larger_than_asked_but_for_the_rest(many_rows: np.ndarray) -> None:
    rows = Rows(many_rows)
    fit_kmeans(rows, CodebookOptions(vocabulary=10, iterations=1), block_rows=2 * TILE_ROWS)
    assert rows.largest_block < 3 * TILE_ROWS


def test_the_cap_clusters_a_subset_and_counts_every_row() -> None:
    values = draw_rows(2000, groups=10)
    capped = fit_kmeans(Rows(values), CodebookOptions(vocabulary=10, iterations=3, max_points_per_centroid=50))
    whole = fit_kmeans(Rows(values), CodebookOptions(vocabulary=10, iterations=3))
    assert capped.sizes.sum() == 2000
    assert capped.history[0].inertia < whole.history[0].inertia / 2
    loose = fit_kmeans(Rows(values), CodebookOptions(vocabulary=10, iterations=3, max_points_per_centroid=200))
    assert_same_bits(loose, whole)


@given(st.sets(st.integers(0, 199), min_size=1), st.integers(1, 250), st.data())
def test_selected_rows_are_the_rows_selected(chosen: set[int], block_rows: int, data: st.DataObject) -> None:
    values = np.arange(400, dtype=np.float32).reshape(200, 2)
    rows = np.array(sorted(chosen))
    start = data.draw(st.integers(0, len(rows) - 1))
    stop = data.draw(st.integers(start + 1, len(rows)))
    store = Rows(values)
    selected = SelectedRows(store, rows, block_rows)
    assert selected.read(start, stop).tolist() == values[rows[start:stop]].tolist()
    assert store.largest_block <= block_rows


@given(st.integers(1, 20 * TILE_ROWS))
def test_tiles_cover_all_rows_and_only_a_lone_tile_is_small(count: int) -> None:
    borders = tile_borders(count)
    lengths = np.diff(borders)
    assert (borders[0], borders[-1]) == (0, count)
    assert (lengths[:-1] == TILE_ROWS).all()
    assert lengths[-1] < 2 * TILE_ROWS
    assert len(lengths) == 1 or lengths[-1] >= TILE_ROWS


# --- the reference mode ---


def test_reference_mode_is_faiss_kmeans() -> None:
    values = draw_rows(3000)
    options = CodebookOptions(vocabulary=20, iterations=5, seed=7, mode="reference", redo=3, max_points_per_centroid=50)
    kmeans = faiss.Kmeans(16, 20, niter=5, nredo=3, seed=7, max_points_per_centroid=50)
    kmeans.train(values.astype(np.float32))
    result = fit_kmeans(Rows(values), options)
    assert result.centroids.tobytes() == kmeans.centroids.tobytes()
    labels, squared = nearest_distances(values, kmeans.centroids)
    assert result.sizes.tolist() == np.bincount(labels, minlength=20).tolist()
    assert result.inertia == pytest.approx(squared.sum(), rel=1e-9)
    assert [record.inertia for record in result.history] == kmeans.obj.tolist()


@pytest.mark.parametrize("iterations", [4, 100])
def test_reference_history_tells_the_restarts_apart(iterations: int) -> None:
    values = draw_rows(400, groups=6)
    options = CodebookOptions(vocabulary=6, iterations=iterations, mode="reference", redo=5, seed=3)
    history = fit_kmeans(Rows(values), options).history
    last_of_restart = {record.restart: record.iteration for record in history}
    assert list(last_of_restart) == list(range(len(last_of_restart)))
    for restart, last in last_of_restart.items():
        # The same restart alone: FAISS seeds restart r with seed + 1 + 15486557 r.
        alone = faiss.Kmeans(16, 6, niter=iterations, seed=3 + 15_486_557 * restart, max_points_per_centroid=400)
        alone.train(values.astype(np.float32))
        assert [r.inertia for r in history if r.restart == restart] == alone.obj.tolist()
        assert last == len(alone.obj) - 1


def test_reference_mode_takes_as_many_rows_as_centroids() -> None:
    result = fit_kmeans(Rows(draw_rows(20)), CodebookOptions(vocabulary=20, iterations=5, mode="reference"))
    assert result.sizes.tolist() == [1] * 20


def test_reference_mode_refuses_to_resume() -> None:
    state = KMeansState(0, 0, draw_rows(20).astype(np.float32))
    with pytest.raises(ModelError, match="cannot resume"):
        fit_kmeans(Rows(draw_rows(100)), CodebookOptions(vocabulary=20, mode="reference"), resume=state)


# --- what it refuses ---


@pytest.mark.parametrize("mode", ["lloyd", "reference"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_a_value_that_is_not_usable_is_named_by_its_row(value: float, mode: str) -> None:
    values = draw_rows(2 * TILE_ROWS + 50).astype(np.float32)
    values[TILE_ROWS + 77, 3] = value
    with pytest.raises(ModelError, match=f"feature row {TILE_ROWS + 77} "):
        fit_kmeans(Rows(values), CodebookOptions(vocabulary=10, mode=mode))


def test_fewer_rows_than_centroids_are_refused_with_both_numbers() -> None:
    with pytest.raises(ModelError, match=r"12 feature rows cannot make 13 centroids.*lower codebook\.vocabulary"):
        fit_kmeans(Rows(draw_rows(12)), CodebookOptions(vocabulary=13))


@pytest.mark.parametrize("value", [0, 3.5])
def test_equal_rows_are_refused(value: float) -> None:
    with pytest.raises(ModelError, match="all 50 feature rows are equal"):
        fit_kmeans(Rows(np.full((50, 4), value, dtype=np.float16)), CodebookOptions(vocabulary=5))


def test_another_dtype_is_refused() -> None:
    with pytest.raises(ModelError, match="float64; k-means takes float16 or float32"):
        fit_kmeans(Rows(draw_rows(50).astype(np.float64)), CodebookOptions(vocabulary=5))


def test_a_store_that_returns_another_width_is_refused() -> None:
    class Narrow(Rows):
        @property
        def width(self) -> int:
            return 20

    with pytest.raises(ModelError, match=r"came as \[50, 16\], expected \[50, 20\]"):
        fit_kmeans(Narrow(draw_rows(50)), CodebookOptions(vocabulary=5))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (KMeansState(0, 0, np.zeros((5, 8), np.float32)), r"\[5, 8\], expected float32 \[5, 16\]"),
        (KMeansState(0, 0, np.zeros((5, 16), np.float64)), "float64 centroids"),
        (KMeansState(0, 0, np.full((5, 16), np.nan, np.float32)), "not finite"),
        (KMeansState(1, 0, np.zeros((5, 16), np.float32)), "restart 1, iteration 0, beyond redo=1"),
        (KMeansState(0, 4, np.zeros((5, 16), np.float32)), "iteration 4, beyond redo=1, iterations=3"),
    ],
)
def test_the_state_of_another_run_is_refused(state: KMeansState, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        fit_kmeans(Rows(draw_rows(50)), CodebookOptions(vocabulary=5, iterations=3), resume=state)


def test_a_saved_state_without_its_centroids_is_refused() -> None:
    arrays_of_state = KMeansState(0, 0, np.zeros((2, 2), np.float32)).to_arrays()
    del arrays_of_state["centroids"]
    with pytest.raises(ModelError, match="centroids"):
        KMeansState.from_arrays(arrays_of_state)


def test_without_faiss_the_error_names_the_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ModelError, match="run `make install`, or `make install FAISS=gpu`"):
        fit_kmeans(Rows(draw_rows(50)), CodebookOptions(vocabulary=5))


@pytest.mark.parametrize("vocabulary", [1, 65_536])
def test_a_vocabulary_that_tokens_cannot_hold_is_refused(vocabulary: int) -> None:
    with pytest.raises(ValidationError, match="vocabulary"):
        CodebookOptions(vocabulary=vocabulary)


# --- statistics ---


def test_even_use_has_the_perplexity_of_the_used_centroids() -> None:
    use = codebook_statistics(np.array([10, 10, 10, 10, 0]))
    assert use.perplexity == pytest.approx(4)
    assert (use.used_share, use.largest_share) == (0.8, 0.25)
    assert (use.p1, use.p50) == (pytest.approx(0.4), 10)


def test_statistics_of_no_vectors_are_refused() -> None:
    with pytest.raises(ModelError, match="all 0"):
        codebook_statistics(np.zeros(3, dtype=np.int64))


def test_the_histogram_has_bins_that_double() -> None:
    edges, counts = histogram_of_sizes(np.array([0, 0, 1, 2, 3, 4, 7, 8]))
    assert edges.tolist() == [0, 1, 2, 4, 8, 16]
    assert counts.tolist() == [2, 1, 2, 2, 1]


@given(arrays(np.int64, st.integers(1, 40), elements=st.integers(0, 2**40)))
def test_every_size_lies_in_its_bin(sizes: np.ndarray) -> None:
    edges, counts = histogram_of_sizes(sizes)
    assert len(edges) == len(counts) + 1
    assert counts.tolist() == np.histogram(sizes, edges)[0].tolist()
    assert sizes.max() < edges[-1]
