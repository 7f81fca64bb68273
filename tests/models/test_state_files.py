"""Tensors by name, as training scripts save them."""

import logging
from pathlib import Path

import pytest
import torch

from models.errors import ModelError
from models.weights.state_files import read_checkpoint

STATE = {"conv.weight": torch.ones(2), "head.bias": torch.zeros(3)}


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module."]
)
def test_what_wrappers_put_before_names_is_taken_off_and_said(
    prefix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save({prefix + name: tensor for name, tensor in STATE.items()}, tmp_path / "wrapped.pt")
    with caplog.at_level(logging.INFO, "models"):
        assert read_checkpoint(tmp_path / "wrapped.pt").keys() == STATE.keys()
    sentence = f"{tmp_path}/wrapped.pt: {prefix}conv.weight and others are read as conv.weight and so on"
    assert caplog.messages == [sentence]


def test_a_compiled_part_of_a_network_has_the_names_of_the_part(tmp_path: Path) -> None:
    torch.save({"conv._orig_mod.weight": torch.ones(2), "head.bias": torch.zeros(3)}, tmp_path / "wrapped.pt")
    assert read_checkpoint(tmp_path / "wrapped.pt").keys() == STATE.keys()


def test_names_that_wrappers_did_not_change_stay_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save({"submodule.weight": torch.ones(2)}, tmp_path / "plain.pt")
    assert list(read_checkpoint(tmp_path / "plain.pt")) == ["submodule.weight"]
    assert caplog.messages == []


def test_the_weights_of_two_networks_in_one_file_are_not_mixed(tmp_path: Path) -> None:
    torch.save({**STATE, "module.head.bias": torch.ones(3)}, tmp_path / "both.pt")
    with pytest.raises(ModelError, match=r"holds head\.bias more than once, as module\.head\.bias too"):
        read_checkpoint(tmp_path / "both.pt")
    torch.save({0: torch.ones(2)}, tmp_path / "numbers.pt")
    with pytest.raises(ModelError, match="expected tensors by name"):
        read_checkpoint(tmp_path / "numbers.pt")
