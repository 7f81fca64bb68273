"""Converting a pickled encoder of DALL-E: what comes out, and what a hostile file cannot do."""

import builtins
import functools
import io
import os
import pickle
import subprocess
import sys
import types
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models.errors import ModelError
from models.tokenizers.dalle import PUBLISHED, DalleShape, load_dalle
from models.tokenizers.dalle_options import DalleOptions
from pipeline.commands import unpickle_dalle
from pipeline.commands.convert_dalle import convert_dalle
from pipeline.engine.errors import PipelineError
from tests.commands import mapet
from tests.models.dalle_files import SMALL, images, published_shapes, small_state

SANDBOX = Path(unpickle_dalle.__file__)


@pytest.fixture
def dall_e(monkeypatch: pytest.MonkeyPatch) -> dict[str, type[nn.Module]]:
    """The package `dall_e` as far as a pickle needs it: classes that can be found under their names."""
    classes = {}
    for path in ("encoder.Encoder", "encoder.EncoderBlock", "utils.Conv2d"):
        module, name = f"dall_e.{path.split('.')[0]}", path.split(".")[1]
        classes[name] = type(name, (nn.Module,), {"__module__": module})
        if module not in sys.modules:
            monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
        setattr(sys.modules[module], name, classes[name])
    monkeypatch.setitem(sys.modules, "dall_e", types.ModuleType("dall_e"))
    return classes


def module_of(state: dict[str, Tensor], dall_e: dict[str, type[nn.Module]]) -> nn.Module:
    """Return the published tree of modules, in its classes, with these tensors."""
    root = dall_e["Encoder"]()
    root.device, root.use_mixed_precision = torch.device("cpu"), True
    for name, tensor in state.items():
        *path, last = name.split(".")
        holder = root
        for depth, part in enumerate(path):
            if part not in holder._modules:
                holder.add_module(part, _kind(path[: depth + 1], dall_e))
            holder = holder._modules[part]
        holder.register_parameter(last, nn.Parameter(tensor, requires_grad=False))
    root.blocks.group_1.add_module("pool", nn.MaxPool2d(2))
    root.blocks.group_1.block_1.add_module("id_path", nn.Identity())
    root.blocks.output.add_module("relu", nn.ReLU())
    return root


def _kind(path: list[str], dall_e: dict[str, type[nn.Module]]) -> nn.Module:
    if path[-1].startswith("block_"):
        return dall_e["EncoderBlock"]()
    if path[-1] == "input" or path[-1].startswith(("conv", "id_path")):
        return dall_e["Conv2d"]()
    return nn.Sequential()


def write(path: Path, made: object, *, zipped: bool = True) -> Path:
    torch.save(made, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickled_encoder_becomes_the_tokenizer_with_its_tensors(
    tmp_path: Path, dall_e: dict[str, type[nn.Module]], zipped: bool
) -> None:
    pickled = write(tmp_path / "encoder.pkl", module_of(small_state(), dall_e), zipped=zipped)
    made = convert_dalle(pickled, tmp_path / "new" / "encoder.safetensors", shape=SMALL)
    assert made.startswith("encoder of DALL-E, 74 tensors")
    converted = load_file(tmp_path / "new" / "encoder.safetensors")
    assert converted.keys() == small_state().keys()
    assert all(torch.equal(converted[name], tensor) for name, tensor in small_state().items())
    options = DalleOptions(checkpoint=str(tmp_path / "new" / "encoder.safetensors"), image_size=32)
    assert load_dalle(options, shape=SMALL)(images(1)).shape == (1, 16)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["encoder.safetensors"]


def refused(pickled: Path, *, shape: DalleShape = SMALL) -> str:
    """Return why; and nothing was written."""
    to = pickled.with_name("refused.safetensors")
    with pytest.raises((PipelineError, ModelError)) as error:
        convert_dalle(pickled, to, shape=shape)
    assert not list(pickled.parent.glob("refused*"))
    assert "\n" not in str(error.value)
    return str(error.value)


class Call:
    """Pickles as a call."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.made = function, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.made


def traps(trace: Path) -> dict[str, Call]:
    """Return the traps by the names that they have in a file: of Python 2, in the protocol that torch writes."""
    return {
        "posix.system": Call(os.system, f"touch {trace}"),
        "__builtin__.eval": Call(builtins.eval, f"open({str(trace)!r}, 'w')"),
        "commands.call": Call(subprocess.call, ["touch", str(trace)]),
    }


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize(
    ("name", "zipped"),
    [("posix.system", True), ("posix.system", False), ("__builtin__.eval", True), ("commands.call", True)],
)
def test_a_hostile_pickle_is_refused_by_the_name_of_what_it_calls(
    tmp_path: Path, dall_e: dict[str, type[nn.Module]], name: str, zipped: bool
) -> None:
    trace = tmp_path / "ran"
    trap = traps(trace)[name]
    module = module_of(small_state(), dall_e)
    module.blocks.extra = trap
    pickled = write(tmp_path / "encoder.pkl", module, zipped=zipped)
    assert f"{name}, which an encoder of DALL-E does not need" in refused(pickled)
    assert not trace.exists()
    pickle.loads(pickle.dumps(trap))  # the trap does work where pickles are trusted
    assert trace.exists()


def test_a_dotted_name_does_not_reach_through_an_allowed_module() -> None:
    program = b"\x80\x04\x8c\x0bcollections\x8c\x16_sys.modules.__class__\x93."
    assert pickle.loads(program) is dict
    with pytest.raises(unpickle_dalle.Refused, match=r"it names collections\._sys\.modules\.__class__"):
        unpickle_dalle.RestrictedUnpickler(io.BytesIO(program)).load()


def test_allowed_functions_that_call_others_are_empty_stand_ins() -> None:
    made = functools.partial(OrderedDict, a=1)
    read = unpickle_dalle.RestrictedUnpickler(io.BytesIO(pickle.dumps(made))).load()
    assert isinstance(read, unpickle_dalle.Inert)
    assert not callable(read)


ATTEMPTS = """
import os, socket, subprocess, sys
folder, here = sys.argv[1:]
sys.path.insert(0, here)
import unpickle_dalle as sandbox

sandbox.confine()
for attempt in (
    lambda: os.system(f"touch {folder}/ran"),
    lambda: subprocess.run(["touch", f"{folder}/ran"]),
    lambda: os.posix_spawn("/bin/touch", ["touch", f"{folder}/ran"], {}),
    lambda: os.fork(),
    lambda: open(f"{folder}/ran", "w"),
    lambda: os.open(f"{folder}/ran", os.O_CREAT | os.O_WRONLY),
    lambda: os.remove(f"{folder}/kept"),
    lambda: os.rename(f"{folder}/kept", f"{folder}/ran"),
    lambda: socket.create_connection(("127.0.0.1", 9)),
):
    try:
        attempt()
    except sandbox.Refused as refused:
        print(refused)
"""


def test_even_code_that_runs_in_the_sandbox_can_do_nothing_outside(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("kept")
    command = [sys.executable, "-B", "-c", ATTEMPTS, str(tmp_path), str(SANDBOX.parent)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert [line.split()[2] for line in out.splitlines()] == [
        *("os.system", "subprocess.Popen", "os.posix_spawn", "os.fork", "open", "open", "os.remove", "os.rename"),
        "socket.getaddrinfo",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_more_memory_than_an_encoder_needs_is_refused(tmp_path: Path, dall_e: dict[str, type[nn.Module]]) -> None:
    state = small_state() | {"blocks.input.b": torch.zeros(1).expand(2**31)}  # 8 GiB once it is written out
    assert "cannot be read as a module of torch" in refused(write(tmp_path / "big.pkl", module_of(state, dall_e)))


def test_a_truncated_pickle_is_refused(tmp_path: Path, dall_e: dict[str, type[nn.Module]]) -> None:
    pickled = write(tmp_path / "encoder.pkl", module_of(small_state(), dall_e))
    pickled.write_bytes(pickled.read_bytes()[:-1000])
    assert "cannot be read as a module of torch" in refused(pickled)


def test_another_module_than_an_encoder_is_refused(tmp_path: Path) -> None:
    for made, reason in (
        ({}, "it holds a dict, not a dall_e.encoder.Encoder"),
        (nn.Linear(2, 2), "it names torch.nn.modules.linear.Linear"),
    ):
        pickled = write(tmp_path / "other.pkl", made)
        with pickled.open("rb") as file, pytest.raises(unpickle_dalle.Refused, match=reason):
            unpickle_dalle.read_tensors(file)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_torchscript_is_not_handed_to_its_own_reader(tmp_path: Path) -> None:
    torch.jit.script(nn.ReLU()).save(tmp_path / "script.pkl")
    assert "it is a TorchScript archive" in refused(tmp_path / "script.pkl")


def test_an_encoder_of_another_layout_is_refused_by_its_first_keys(
    tmp_path: Path, dall_e: dict[str, type[nn.Module]]
) -> None:
    state = small_state()
    state["blocks.group_1.block_1.res_path.conv_5.w"] = state.pop("blocks.group_1.block_1.res_path.conv_4.w")
    pickled = write(tmp_path / "encoder.pkl", module_of(state, dall_e))
    reason = refused(pickled)
    assert "missing: blocks.group_1.block_1.res_path.conv_4.w" in reason
    assert "unexpected: blocks.group_1.block_1.res_path.conv_5.w" in reason
    assert "blocks.input.w ([8, 3, 7, 7] instead of [256, 3, 7, 7])" in refused(pickled, shape=PUBLISHED)


def test_what_exists_is_not_overwritten_and_a_suffix_is_demanded(tmp_path: Path) -> None:
    there = tmp_path / "there.safetensors"
    there.write_text("precious")
    with pytest.raises(PipelineError, match="exists; name a file that does not"):
        convert_dalle(tmp_path / "encoder.pkl", there)
    with pytest.raises(PipelineError, match=r"ends in \.safetensors"):
        convert_dalle(tmp_path / "encoder.pkl", tmp_path / "encoder.pt")
    with pytest.raises(PipelineError, match="cannot be opened"):
        convert_dalle(tmp_path / "encoder.pkl", tmp_path / "new.safetensors")
    assert there.read_text() == "precious"


def test_the_command_converts_the_published_layout_and_refuses_in_one_sentence(
    tmp_path: Path, dall_e: dict[str, type[nn.Module]]
) -> None:
    state = {name: torch.zeros(()).expand(shape) for name, shape in published_shapes().items()}  # takes no place
    pickled, to = write(tmp_path / "encoder.pkl", module_of(state, dall_e)), tmp_path / "encoder.safetensors"
    said = mapet(tmp_path / "said", "convert-dalle", str(pickled), "--to", str(to))
    assert said.code == 0, said.err
    assert said.out == f"{to}: encoder of DALL-E, 74 tensors, 53.8 M parameters\n"
    assert to.stat().st_size > 2.15e8
    to.unlink()  # pytest would keep it
    write(pickled, Call(os.system, "true"))
    refused = mapet(tmp_path / "said", "convert-dalle", str(pickled), "--to", str(to))
    assert refused.code == 2
    assert refused.err.startswith("mapet: error: ")
    assert "posix.system" in refused.err
    assert len(refused.err.splitlines()) == 1
    assert not to.exists()
