"""The sandbox in which DALL-E's published encoder.pkl is unpickled. Started by `convert_dalle.py`, not by hand.

A pickle is a program. This one runs in a process of its own (`python -I -B`, empty environment) that gets the file on
its standard input and answers with safetensors on its standard output, and

- may name only the few things below: tensors are rebuilt by torch, while every class of a network is replaced by an
  empty one, so that neither DALL-E's package nor code of any module is run;
- may write no file, and use no more than some memory and processor time (limits of the kernel);
- may start no process, open no connection, remove or rename nothing (an audit hook: a second lock, not the first).

The file stands alone: the isolated interpreter is not to depend on where the project lies.
"""

import io
import os
import pickle
import resource
import sys
import types
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, BinaryIO

import torch
from safetensors.torch import save
from torch import Tensor

REFUSED = 3
"""Exit code; the reason is one line on standard error."""

MEMORY_BYTES = 4 << 30
PROCESSOR_SECONDS = 300


class Refused(Exception):
    """The file is not to be trusted, or not the expected one; the message is for the user."""


class Inert:
    """Stands in for a class of the pickle: takes its attributes, does nothing."""

    dump_patches = False  # torch asks classes whose source is in the file, as in the older format, and differs

    def __init__(self, *arguments: object, **options: object) -> None:
        """Drop what the real class would be called with."""

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            vars(self).update(state)


class Encoder(Inert):
    """Stands in for `dall_e.encoder.Encoder`, the only thing the file may be."""


HARMLESS: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "builtins.set": set,
    "__builtin__.set": set,  # the same in the old protocols, which torch writes
    "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
    "torch._utils._rebuild_parameter": torch._utils._rebuild_parameter,
    "dall_e.encoder.Encoder": Encoder,
}
STAND_INS = (
    "dall_e.encoder.EncoderBlock",
    "dall_e.utils.Conv2d",
    "functools.partial",
    "torch.device",
    "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.linear.Identity",
    "torch.nn.modules.pooling.MaxPool2d",
)
ALLOWED = HARMLESS | {name: Inert for name in STAND_INS}

FORBIDDEN_EVENTS = (
    *("os.chmod", "os.chown", "os.exec", "os.fork", "os.kill", "os.link", "os.mkdir", "os.posix_spawn", "os.putenv"),
    *("os.remove", "os.rename", "os.rmdir", "os.spawn", "os.symlink", "os.system", "os.truncate", "os.utime"),
    *("ctypes.", "fcntl.", "shutil.", "socket.", "subprocess.", "tempfile.", "pty."),
)


def confine() -> None:
    """Forbid from here on: no file written, no process, no connection, bounded memory and time. Cannot be undone."""
    limits = {
        resource.RLIMIT_DATA: MEMORY_BYTES,
        resource.RLIMIT_CPU: PROCESSOR_SECONDS,
        resource.RLIMIT_FSIZE: 0,
    }
    for limit, value in limits.items():
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))
    vars(torch.jit)["load"] = _refuse_torchscript  # to which torch.load would hand what looks like TorchScript
    sys.addaudithook(_refuse_event)


def _refuse_event(event: str, arguments: tuple[Any, ...]) -> None:
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if writes or event.startswith(FORBIDDEN_EVENTS):
        raise Refused(f"it tries {event} {arguments}"[:200])


class RestrictedUnpickler(pickle.Unpickler):
    """Finds nothing but what is in `ALLOWED`. (torch finds the kinds of its storages itself, before asking here.)"""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return ALLOWED[f"{module}.{name}"]
        except KeyError:
            raise Refused(f"it names {module}.{name}, which an encoder of DALL-E does not need") from None


def read_tensors(file: BinaryIO) -> dict[str, Tensor]:
    """Return the parameters, by name, of the module in a file of `torch.save`, in its zip format or the older one.

    Raises:
        Refused: the file names something that is not allowed, or holds something else.
    """
    restricted = types.ModuleType("restricted")
    vars(restricted).update(Unpickler=RestrictedUnpickler, load=_restricted_load)
    # bandit cannot see that the unpickler is a restricted one.
    module = torch.load(file, map_location="cpu", pickle_module=restricted, weights_only=False)  # nosec B614
    if not isinstance(module, Encoder):
        raise Refused(f"it holds a {type(module).__name__}, not a dall_e.encoder.Encoder")
    return dict(_tensors(module))


def _restricted_load(file: BinaryIO, **options: Any) -> object:
    return RestrictedUnpickler(file, **options).load()


def _refuse_torchscript(*_: object, **__: object) -> None:
    raise Refused("it is a TorchScript archive")


def _tensors(module: Inert, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    parts = vars(module)
    for kind in ("_parameters", "_buffers"):
        for name, tensor in parts.get(kind, {}).items():
            if isinstance(tensor, Tensor):
                # Copied one by one: safetensors writes no views, and two names may share a storage.
                yield f"{prefix}{name}", tensor.detach().clone(memory_format=torch.contiguous_format)
    for name, child in parts.get("_modules", {}).items():
        yield from _tensors(child, f"{prefix}{name}.")


def main() -> None:
    """Turn standard input into standard output; exits with `REFUSED` and a reason on standard error."""
    warnings.simplefilter("ignore")
    confine()
    try:
        answer = save(read_tensors(io.BytesIO(sys.stdin.buffer.read())))
    except Refused as refused:
        reason = str(refused)
    except Exception as error:  # a damaged pickle fails anywhere, with anything
        reason = f"it cannot be read as a module of torch ({type(error).__name__}: {error})"
    else:
        sys.stdout.buffer.write(answer)
        sys.stdout.flush()
        return
    sys.stderr.write(" ".join(reason.split())[:400])
    sys.exit(REFUSED)


if __name__ == "__main__":
    main()
