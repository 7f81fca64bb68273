"""k-means on FAISS's index of the device: exact, the same bits twice, and the same bits when it is interrupted."""

import numpy as np
import pytest

faiss = pytest.importorskip("faiss")

from models.kmeans.clustering import KMeansState, fit_kmeans  # noqa: E402 (it would fail before the line above)
from models.kmeans.options import CodebookOptions  # noqa: E402
from tests.models.kmeans_rows import Rows, assert_same_bits, draw_rows, nearest_distances  # noqa: E402

OPTIONS = CodebookOptions(vocabulary=40, iterations=6)


@pytest.fixture(autouse=True)
def _searches_there(device: str) -> None:
    if device.startswith("cuda") and not hasattr(faiss, "StandardGpuResources"):
        pytest.skip("the installed FAISS is faiss-cpu: `make install FAISS=gpu`")


@pytest.fixture(scope="module")
def rows() -> Rows:
    """Four tiles, the last larger than the others, with channels of very different size."""
    width = 32
    scale = 10 ** np.random.default_rng(1).uniform(-2, 1, size=width)
    return Rows((draw_rows(70_000, width) * scale).astype(np.float16))


def test_every_row_is_at_its_nearest_centroid_by_float64(rows: Rows, device: str) -> None:
    result = fit_kmeans(rows, OPTIONS, device=device)
    nearest, squared = (np.concatenate(parts) for parts in zip(*_by_blocks(rows, result.centroids), strict=True))
    # FAISS compares in float32: rows as near to two centroids may be at either.
    assert np.abs(result.sizes - np.bincount(nearest, minlength=40)).sum() <= 1e-3 * len(rows)
    assert result.inertia == pytest.approx(squared.sum(), rel=1e-6)


def _by_blocks(rows: Rows, centroids: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    return [nearest_distances(rows.values[first : first + 10_000], centroids) for first in range(0, len(rows), 10_000)]


def test_the_codebook_is_the_cpus(rows: Rows, device: str) -> None:
    expected, found = (fit_kmeans(rows, OPTIONS, device=each) for each in ("cpu", device))
    assert found.inertia == pytest.approx(expected.inertia, rel=1e-4)
    np.testing.assert_allclose(found.centroids, expected.centroids, rtol=0, atol=0.02 * np.abs(rows.values).max())


def test_two_fits_have_the_same_bits_whatever_the_blocks(rows: Rows, device: str) -> None:
    first = fit_kmeans(rows, OPTIONS, device=device)
    assert_same_bits(fit_kmeans(rows, OPTIONS, device=device), first)
    assert_same_bits(fit_kmeans(rows, OPTIONS, device=device, block_rows=20_000), first)


def test_a_fit_that_goes_on_after_any_iteration_has_the_bits_of_one_never_stopped(rows: Rows, device: str) -> None:
    states: list[KMeansState] = []
    undisturbed = fit_kmeans(rows, OPTIONS, device=device, on_iteration=states.append)
    for state in states:
        assert_same_bits(fit_kmeans(rows, OPTIONS, device=device, resume=state), undisturbed)


def test_the_reference_mode_reaches_the_cpus_inertia(rows: Rows, device: str) -> None:
    options = OPTIONS.model_copy(update={"mode": "reference"})
    expected, found = (fit_kmeans(rows, options, device=each).inertia for each in ("cpu", device))
    assert found == pytest.approx(expected, rel=1e-2)
