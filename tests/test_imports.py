"""No circle of files, nor of folders: whoever reads one reads what it stands on, and never comes back to it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.stages import records as stage_records

ROOT = Path(__file__).parents[1]
PACKAGES = ("models", "storage", "pipeline", "flows", "benchmarks", "tests")
Graph = dict[str, set[str]]


def modules(root: Path) -> dict[str, Path]:
    """Return every file of the packages, by the name that it is imported by."""
    named = {}
    for path in (path for package in PACKAGES for path in (root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


def statements(node: ast.AST, *, in_functions: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the imports of a file, for a type checker too: a reader follows those as well; of functions when asked
    for."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not in_functions:
        return
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node
    for child in ast.iter_child_nodes(node):
        yield from statements(child, in_functions=in_functions)


def names(statement: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """Yield what is meant: `from a import b` may mean the file a/b.py, or something in a."""
    if isinstance(statement, ast.Import):
        yield from (alias.name for alias in statement.names)
    else:
        assert not statement.level, f"a relative import, {ast.unparse(statement)}"
        yield from (f"{statement.module}.{alias.name}" for alias in statement.names)


def import_graph(root: Path, *, in_functions: bool) -> Graph:
    named, graph = modules(root), {}
    for module, path in named.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        asked = [name for one in statements(tree, in_functions=in_functions) for name in names(one)]
        found = {name if name in named else name.rpartition(".")[0] for name in asked}
        graph[module] = (found & named.keys()) - {module}
    return graph


def folders(graph: Graph) -> Graph:
    """Return the same of folders at the second level, such as `pipeline.engine`."""
    merged: Graph = {}
    for module, others in graph.items():
        merged.setdefault(_folder(module), set()).update(map(_folder, others))
    return {folder: others - {folder} for folder, others in merged.items()}


def _folder(module: str) -> str:
    return ".".join(module.split(".")[:2])


def circles(graph: Graph) -> list[list[str]]:
    """Groups of files of which each reaches every other."""
    reached = {module: _reached(graph, module) for module in graph}
    groups = {
        tuple(sorted(other for other in reached[module] if module in reached[other]))
        for module in graph
        if module in reached[module]
    }
    return sorted(list(group) for group in groups)


def _reached(graph: Graph, start: str) -> set[str]:
    found: set[str] = set()
    ahead = list(graph[start])
    while ahead:
        module = ahead.pop()
        if module not in found:
            found.add(module)
            ahead.extend(graph[module])
    return found


def test_no_files_import_each_other_when_they_are_loaded() -> None:
    assert circles(import_graph(ROOT, in_functions=False)) == []


def test_no_files_import_each_other_when_their_functions_are_called_either() -> None:
    assert circles(import_graph(ROOT, in_functions=True)) == []


def test_no_folders_import_each_other() -> None:
    graph = import_graph(ROOT, in_functions=True)
    of_tests = {module for module in graph if module.startswith("tests")}  # whose folders share what stands beside them
    code = {module: others - of_tests for module, others in graph.items() if module not in of_tests}
    assert circles(folders(code)) == []


def test_the_pipeline_has_at_most_ten_entries() -> None:
    entries = [path.name for path in (ROOT / "pipeline").iterdir() if path.name != "__pycache__"]
    assert len(entries) <= 10, entries


def test_the_list_of_the_stages_folder_recites_the_pipeline() -> None:
    folder = ROOT / "pipeline/stages"
    stages = {record.STAGE for record in vars(stage_records).values() if hasattr(record, "STAGE")}
    holds = {path.stem: names for path in folder.rglob("*.py") if (names := stage_names(path))}
    assert holds == {stage: [stage] for stage in stages}, "a stage's file is called as the stage"
    told_of_several = {"__init__", "records", "recipe_views"}
    assert {path.stem for path in folder.glob("*.py")} - told_of_several <= stages


def stage_names(path: Path) -> list[str]:
    """Return the names of the stages that a file holds: `NAME: ClassVar[str] = PretrainRecord.STAGE`."""
    found = [
        ast.unparse(node.value)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "NAME" and node.value
    ]
    return [getattr(stage_records, record.partition(".")[0]).STAGE for record in found]


def test_every_package_is_looked_at() -> None:
    graph = import_graph(ROOT, in_functions=False)
    for package in PACKAGES:
        assert [other for module, others in graph.items() if module.split(".")[0] == package for other in others]


@pytest.mark.parametrize(
    ("first", "second", "loaded", "called"),
    [
        ("from models.b import B", "from models import a", True, True),
        ("import models.b", "from models.a import A", True, True),
        ("class A:\n    from models.b import B", "import models.a", True, True),
        ("def f():\n    from models.b import B", "from models.a import f", False, True),
        ("if TYPE_CHECKING:\n    from models.b import B", "from models.a import A", True, True),
        ("from models.b import B", "from storage import a", False, False),
    ],
)
def test_a_circle_is_found_wherever_its_imports_stand(
    first: str, second: str, loaded: bool, called: bool, tmp_path: Path
) -> None:
    (tmp_path / "models").mkdir()
    for name, text in {"__init__": "", "a": first, "b": second}.items():
        (tmp_path / "models" / f"{name}.py").write_text(text)
    wanted = [["models.a", "models.b"]]
    assert circles(import_graph(tmp_path, in_functions=False)) == (wanted if loaded else [])
    assert circles(import_graph(tmp_path, in_functions=True)) == (wanted if called else [])
