"""Tokens that several test files train on."""

import pytest

from tests.stages import TokenizedImages
from tests.trainings import tokenize_photos


@pytest.fixture(scope="session")
def tokenized(tmp_path_factory: pytest.TempPathFactory) -> TokenizedImages:
    return tokenize_photos(tmp_path_factory.mktemp("tokenized"))
