"""Nothing that the packages load can run code: no call that unpickles, evaluates, asks a shell or unpacks unchecked.

Read from the syntax trees. A call through another name (`from torch import load as l`) is seen, one through `getattr`
is not: this guards against slips, not against an author who hides one.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("models", "storage", "pipeline", "flows")

ALLOWED = {
    # The sandbox: an empty environment, no files, no network, and only the listed names (tests/pipeline/
    # test_convert_dalle.py attacks it).
    ("pipeline/commands/unpickle_dalle.py", "torch.load"),
    ("pipeline/commands/unpickle_dalle.py", "pickle.Unpickler"),
    # What to train, from the process that started this one, in a temporary folder that only its user can write to.
    ("pipeline/training/worker.py", "pickle.loads"),
    # Whether an error of our own can be sent: what this process has just pickled.
    ("pipeline/engine/job.py", "pickle.loads"),
    # The same, and losses, among the processes that train together: PyTorch pickles them. torchrun's nodes must trust
    # each other and their network in any case.
    ("pipeline/engine/processes.py", "torch.distributed.broadcast_object_list"),
    ("pipeline/engine/processes.py", "torch.distributed.all_gather_object"),
}

UNPICKLERS = ("load", "loads", "Unpickler")
FORBIDDEN = (
    {f"{module}.{name}" for module in ("pickle", "_pickle", "dill", "cloudpickle", "marshal") for name in UNPICKLERS}
    | {"joblib.load", "shelve.open", "pandas.read_pickle", "torch.jit.load", "torch.hub.load", "torch.package.load"}
    | {f"torch.distributed.{name}_object_list" for name in ("broadcast", "scatter", "send", "recv")}
    | {"torch.distributed.all_gather_object", "torch.distributed.gather_object"}
    | {f"yaml.{name}" for name in ("load", "load_all", "full_load", "unsafe_load", "full_load_all", "unsafe_load_all")}
    | {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "tempfile.mktemp"}
    | {"shutil.unpack_archive", "subprocess.getoutput", "subprocess.getstatusoutput"}
)


def unsafe_calls(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and name of each unsafe use in a module's text."""
    tree = ast.parse(source)
    names = _imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            bases = (_dotted(base, names) for base in node.bases)
            yield from ((node.lineno, base) for base in bases if base in FORBIDDEN)
        elif isinstance(node, ast.Call):
            name = _dotted(node.func, names)
            if name in FORBIDDEN or _is_unsafe(name, _constants(node)):
                yield node.lineno, name


def _is_unsafe(name: str, given: dict[str, object]) -> bool:
    return (
        (name == "torch.load" and given.get("weights_only") is not True)
        or (name == "numpy.load" and given.get("allow_pickle") is not False)
        or name.endswith((".extractall", ".extract"))  # members of an archive may be named ../../etc/passwd
        or given.get("allow_pickle", False) is not False
        or given.get("shell", False) is not False
        or given.get("trust_remote_code", False) is not False
    )


def _constants(call: ast.Call) -> dict[str, object]:
    """Return the call's keyword arguments; what is not a constant stands for itself, so it is neither True nor
    False."""
    return {
        word.arg: word.value.value if isinstance(word.value, ast.Constant) else word.value
        for word in call.keywords
        if word.arg
    }


def _imported(tree: ast.Module) -> dict[str, str]:
    """Return what the module's own names stand for: `np` for `numpy`, `load` for `torch.load`."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _dotted(node: ast.expr, names: dict[str, str]) -> str:
    """Return `torch.load` for that attribute, `?.extractall` for one of something else than a name."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    return f"{_dotted(node.value, names)}.{node.attr}" if isinstance(node, ast.Attribute) else "?"


def found() -> Iterator[tuple[str, int, str]]:
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        yield from ((path.relative_to(ROOT).as_posix(), *call) for call in unsafe_calls(path.read_text()))


def test_nothing_that_the_packages_load_can_run_code() -> None:
    unsafe = [f"{path}:{line}: {name}" for path, line, name in found() if (path, name) not in ALLOWED]
    assert not unsafe, "load with weights_only=True or allow_pickle=False, parse with safe_load, run without a shell"


def test_every_exception_is_still_needed() -> None:
    assert {(path, name) for path, _, name in found()} >= ALLOWED


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "import torch\ntorch.load(path, weights_only=trusted)",
        "from torch import load as read\nread(path)",
        "import torch.distributed as dist\ndist.broadcast_object_list(held)",
        "import pickle\npickle.load(file)",
        "import pickle as p\np.loads(data)",
        "from pickle import Unpickler\nUnpickler(file).load()",
        "import pickle\nclass Reader(pickle.Unpickler): ...",
        "import numpy as np\nnp.load(path)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "reader(path, allow_pickle=flag)",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "import os\nos.system('ls')",
        "archive.extractall(folder)",
        "tarfile.open(path).extract(member, folder)",
        "eval(text)",
        "def late():\n    exec(text)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_an_unsafe_call_is_found(source: str) -> None:
    assert [line for line, _ in unsafe_calls(source)] == [2 if "\n" in source else 1]


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(path, weights_only=True)",
        "import numpy as np\nnp.load(path, mmap_mode='r', allow_pickle=False)",
        "import yaml\nyaml.safe_load(text)",
        "import subprocess\nsubprocess.run(['ls'], shell=False)",
        "import re\nre.compile('x')",
        "import torch\ntorch.compile(model)\nmodel.eval()",
        "import pickle\npickle.dumps(value)",
    ],
)
def test_a_safe_call_is_passed(source: str) -> None:
    assert not list(unsafe_calls(source))
