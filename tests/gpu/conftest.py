"""What a GPU computes, against the CPU: skipped where there is none.

pytest tests/gpu                            # on a card, in a few minutes
MAPET_TEST_DEVICE=cpu pytest tests/gpu      # the CPU against itself: do the tests run, and do equals compare equal?
"""

import pytest
import torch

from models.encoders.arithmetic import arithmetic
from pipeline.engine.settings import Settings
from tests.conftest import TEST_DEVICE
from tests.stages import TokenizedImages
from tests.trainings import tokenize_photos


@pytest.fixture(scope="session", autouse=True)
def device() -> str:
    """`cuda`, or what MAPET_TEST_DEVICE says."""
    wanted = TEST_DEVICE or "cuda"
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        pytest.skip("no GPU here (MAPET_TEST_DEVICE=cpu compares the CPU with itself)")
    return Settings(device=wanted).torch_device()  # which has attention computed as in every process of a run


@pytest.fixture
def _float32(device: str) -> object:
    """Float32 that is float32: cuDNN's convolutions would round their inputs to TF32, as is usual in training."""
    with arithmetic("fp32", torch.device(device)):
        yield


@pytest.fixture(scope="session")
def tokenized(device: str, tmp_path_factory: pytest.TempPathFactory) -> TokenizedImages:
    """Made on the CPU."""
    pytest.importorskip("faiss")
    return tokenize_photos(tmp_path_factory.mktemp("tokenized"))
