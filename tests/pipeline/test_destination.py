"""What a command writes with `--to`: new, whole or absent, and nothing of anybody else's is touched."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, chdir
from pathlib import Path

import pytest

from pipeline.commands.destination import new_directory, new_file
from pipeline.engine.errors import PipelineError
from tests.commands import mapet, without_privileges

MAKERS = [new_directory, new_file]
Maker = Callable[[Path], AbstractContextManager[Path]]


def put(place: Path) -> None:
    (place / "content" if place.is_dir() else place).write_text("new")


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("make", MAKERS)
def test_neighbours_with_similar_names_stay(make: Maker, tmp_path: Path) -> None:
    for name in ("made.partial", "made.tmp", ".made"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.tex").write_text("precious")
    before = tree(tmp_path)
    with make(tmp_path / "made") as place:
        put(place)
    assert len(tree(tmp_path)) == 4
    assert tree(tmp_path).items() > before.items()
    assert (tmp_path / "made").stat().st_mode & 0o044, "readable by others, as other files"


@pytest.mark.parametrize("make", MAKERS)
def test_what_fails_leaves_nothing(make: Maker, tmp_path: Path) -> None:
    def run_out_of_space() -> None:
        with make(tmp_path / "made") as place:
            put(place)
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        run_out_of_space()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", MAKERS)
def test_what_appears_meanwhile_is_not_overwritten(make: Maker, tmp_path: Path) -> None:
    def come_second() -> None:
        with make(tmp_path / "made") as place:
            put(place)
            (tmp_path / "made").write_text("of another run")

    with pytest.raises(PipelineError, match="made exists"):
        come_second()
    assert tree(tmp_path) == {"made": "of another run"}


COMMANDS = [
    ("export", "artifact"),
    ("import-official", "checkpoint"),
    ("convert-dalle", "encoder.pkl"),
    ("codebook", "artifact"),
]


@pytest.fixture
def places(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "file.txt").write_text("precious")
    (tmp_path / "there.safetensors").mkdir()
    (tmp_path / "dangling.safetensors").symlink_to("nowhere")
    (tmp_path / "closed").mkdir(mode=0o555)
    with chdir(tmp_path):
        yield tmp_path


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("file.txt/x.safetensors", "cannot be made: {}/file.txt is a file"),
        ("file.txt/deep/x.safetensors", "cannot be made: {}/file.txt is a file"),
        ("there.safetensors", "there.safetensors exists; name a"),
        ("dangling.safetensors", "dangling.safetensors exists; name a"),
        ("closed/x.safetensors", "cannot be made: you may not write to {}/closed"),
    ],
)
def test_a_place_that_cannot_be_is_one_sentence(
    command: tuple[str, str], to: str, message: str, places: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    words = (*command, "--to", str(places / to))
    said = mapet(tmp_path_factory.mktemp("said"), *words, shortage=without_privileges)
    assert said.code == 2, said.err
    assert said.err.startswith("mapet: error: "), said.err
    assert message.format(places) in said.err
    assert said.err.count("\n") == 1
    assert tree(places) == {"file.txt": "precious"}
