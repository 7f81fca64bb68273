"""Tokens that several test files train on."""

import pytest

from tests.trainings import Tokenized, tokenize_photos


@pytest.fixture(scope="session")
def tokenized(tmp_path_factory: pytest.TempPathFactory) -> Tokenized:
    return tokenize_photos(tmp_path_factory.mktemp("tokenized"))
