"""DALL-E's published encoder.pkl, a whole pickled module, as plain tensors: done once, explicitly, in a sandbox.

Reading a pickle runs what stands in it. `unpickle_dalle.py` says how far it is let; what comes back are bytes
in the safetensors format, which are compared with the encoder's layout before a file appears.
"""

import signal
import subprocess
import sys
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from models.tokenizers.dalle import PUBLISHED, DalleShape, check_dalle_state
from pipeline.commands.destination import new_file, require_new
from pipeline.engine.errors import PipelineError

_SANDBOX = Path(__file__).with_name("unpickle_dalle.py")
_REFUSED = 3  # `unpickle_dalle.REFUSED`; importing that file here would load what the sandbox is to load
_SECONDS = 900  # of the clock: the sandbox bounds its own processor time


def convert_dalle(pickle: Path, to: Path, *, shape: DalleShape = PUBLISHED) -> str:
    """Write the tensors of a pickled encoder to the safetensors file `to`; returns what it is, in words.

    Raises:
        PipelineError: `to` exists, cannot be made or has another suffix, `pickle` cannot be opened, or the sandbox
            refused it: the first name that is not on its list is told.
        ModelError: the tensors are not those of an encoder of this shape; nothing is written.
    """
    if to.suffix != ".safetensors":
        raise PipelineError(f"{to}: expected the name of a file that ends in .safetensors")
    require_new(to, "file")
    answer = _unpickled(pickle)
    state = _tensors(answer, source=pickle)
    check_dalle_state(state, shape, source=str(pickle))
    with new_file(to) as temporary:
        temporary.write_bytes(answer)
    numbers = sum(tensor.numel() for tensor in state.values())
    return f"encoder of DALL-E, {len(state)} tensors, {numbers / 1e6:.1f} M parameters"


def _unpickled(pickle: Path) -> bytes:
    command = [sys.executable, "-I", "-B", str(_SANDBOX)]
    environment = {"OMP_NUM_THREADS": "1"}
    try:
        with pickle.open("rb") as file:
            done = subprocess.run(
                command, stdin=file, capture_output=True, env=environment, cwd="/", timeout=_SECONDS, check=False
            )
    except subprocess.TimeoutExpired as error:
        raise PipelineError(f"{pickle}: not unpickled within {_SECONDS} s; nothing was written") from error
    except OSError as error:
        raise PipelineError(f"{pickle} cannot be opened ({error.strerror})") from error
    if done.returncode:
        raise PipelineError(f"{pickle} was not converted: {_reason(done)}; get the published encoder.pkl")
    return done.stdout


def _reason(done: subprocess.CompletedProcess[bytes]) -> str:
    if done.returncode < 0:
        return f"the sandbox ended by {signal.Signals(-done.returncode).name}, as beyond its memory or time"
    lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
    return lines[-1] if done.returncode == _REFUSED else f"the sandbox failed ({lines[-1]})"


def _tensors(answer: bytes, *, source: Path) -> dict[str, Tensor]:
    try:
        return load(answer)
    except SafetensorError as error:
        raise PipelineError(f"{source}: the sandbox gave no tensors ({error}); nothing was written") from error
