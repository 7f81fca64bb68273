"""Nodes of a graph that are made at once, each in a process of its own: what is made, what is said, and every end."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import psutil
import pytest

from pipeline.chains.by_name import CHAINS
from pipeline.chains.graph import Graph, Node, make_directly
from pipeline.chains.run import run_in_jobs
from pipeline.chains.sharing import sharing_of
from pipeline.configuration.config import KClipBuildConfig
from pipeline.configuration.presets import preset
from pipeline.data.inputs import ImageLocation
from pipeline.data.source_options import ImageSourceOptions
from pipeline.engine.errors import PipelineError
from pipeline.engine.logs import log_to_stderr
from pipeline.engine.settings import Settings
from pipeline.engine.stage import Made, Source, Stage, recipe_of
from pipeline.engine.stops import raise_if_stopped, remembered_stops
from pipeline.engine.tracker import TrackedRun
from pipeline.engine.workspace import Workspace
from pipeline.stages.index_images import IndexImages
from storage.artifact import Built, Recipe
from tests.builds import make_photos
from tests.forked import Forked, start

PATIENCE = 60.0


@dataclass(frozen=True)
class Note(Stage):
    """A text after that of another stage, in which a process has its number written.

    Attributes:
        meets: a text that has to be under way at the same time.
        ends: how the process ends instead, the first time.
    """

    NAME: ClassVar[str] = "note"

    text: str
    after: Source | None = None
    meets: str = ""
    ends: str = ""

    @property
    def part(self) -> str:
        return "" if self.text == "needed" else f"part {self.text}"

    def recipe(self, made: Made) -> Recipe:
        before = made.get(self.after)
        return recipe_of(self, {"text": self.text}, **({"after": before.digest} if before else {}))

    def build(self, made: Made, folder: Path, run: TrackedRun) -> Built:
        begun = folder.parent / f"{self.text}.begun"
        if not begun.exists():
            begun.write_text(str(os.getpid()))
            (folder / "half").touch()
            self._meet(folder)
            self._end()
        before = made.get(self.after)
        (folder / "words").write_text(((before.path / "words").read_text() + " " if before else "") + self.text)
        return Built({}, {"half": (folder / "half").exists(), "jobs": made.settings.jobs})

    def _meet(self, folder: Path) -> None:
        deadline = time.monotonic() + PATIENCE
        while self.meets and not (folder.parent / f"{self.meets}.begun").exists():
            assert time.monotonic() < deadline, f"{self.meets} was not begun"
            time.sleep(0.005)

    def _end(self) -> None:
        match self.ends:
            case "error":
                raise PipelineError("no such word")
            case "bug":
                raise ZeroDivisionError("by nothing")
            case "wait":
                while True:
                    time.sleep(0.01)
                    raise_if_stopped()
            case number if number:
                os.kill(os.getpid(), signal.Signals[number])


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("jobs") / "photos", train=2, val=1)


def run_notes(root: Path, photos: Path, notes: tuple[Note, ...], jobs: int) -> None:
    """Run a graph of an image index and notes in this process; prints what came of it."""
    source = ImageSourceOptions(path=str(photos))
    config = KClipBuildConfig(images=source)
    index = IndexImages(ImageLocation(source))
    nodes = [Node(index, config), *(Node(note, config, note.text, note.part) for note in notes)]
    workspace = Workspace(Settings(data_root=root, device="cpu", jobs=jobs))
    log_to_stderr()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with remembered_stops():
        done = run_in_jobs(Graph.of(nodes), workspace, make_directly, lambda node: node.name)
    for one in done.results[1:]:
        notes_on = one.artifact.notes
        words = (one.artifact.path / "words").read_text()
        sys.stdout.write(f"{words} {one.cached} {notes_on['half']} {notes_on['jobs']}\n")
    for failure in done.failures:
        sys.stdout.write(f"{failure.part} failed: {failure.reason}\n")


def begin(folder: Path, photos: Path, *notes: Note, jobs: int = 2) -> Forked:
    return start(folder / "said", run_notes, folder / "data", photos, notes, jobs)


def run(folder: Path, photos: Path, *notes: Note, jobs: int = 2) -> Forked:
    process = begin(folder, photos, *notes, jobs=jobs)
    process.wait(PATIENCE)
    return process


def processes_of(folder: Path) -> Iterator[int]:
    """Yield the numbers of those that have begun to write."""
    for path in sorted((folder / "data" / "note").glob("*.begun")):
        yield int(path.read_text() or "0")


def test_two_nodes_are_made_at_once_and_listed_in_the_order_of_the_graph(photos: Path, tmp_path: Path) -> None:
    one, two = Note("one", meets="two"), Note("two", meets="one")
    said = run(tmp_path, photos, one, Note("three", after=one), two, Note("four", after=two))
    assert said.out.splitlines() == [
        "one False True 2",
        "one three False True 2",
        "two False True 2",
        "two four False True 2",
    ], said.err
    lines = said.err.splitlines()
    assert lines.count("2 jobs at once (settings.jobs)") == 1
    path = tmp_path / "data" / "note"
    for name in ("one", "two"):
        assert [line for line in lines if line.startswith(f"note-{name}: note: building, {path}/")]
    assert len(set(processes_of(tmp_path))) == 2, "a process makes one after the other"
    again = run(tmp_path, photos, one, Note("three", after=one), two, Note("four", after=two))
    assert again.out == said.out.replace("False", "True")
    assert "jobs at once" not in again.err


def test_what_is_alone_is_made_in_this_process_with_all_of_the_machine(photos: Path, tmp_path: Path) -> None:
    one, two = Note("one"), Note("two")
    assert run(tmp_path, photos, one).out == "one False True 1\n"
    said = run(tmp_path, photos, one, two, Note("three", after=one))
    assert said.out.splitlines()[1:] == ["two False True 2", "one three False True 2"]
    last = run(tmp_path, photos, one, two, Note("four", after=two))
    assert last.out.splitlines()[1:] == ["two True True 2", "two four False True 1"]
    assert "jobs at once" not in last.err


@pytest.mark.parametrize(
    ("ends", "reason"),
    [
        ("error", "no such word"),
        ("bug", "by nothing"),
        (
            "SIGKILL",
            "its process was killed by SIGKILL, as Linux does when memory is short; what is done is kept: run the same "
            "command again to go on",
        ),
        ("SIGTERM", "its process was told to stop; what is done is kept: run the same command again to go on"),
    ],
)
def test_a_job_that_fails_keeps_only_what_needs_it_from_running(
    ends: str, reason: str, photos: Path, tmp_path: Path
) -> None:
    lost = Note("lost", ends=ends)
    notes = (lost, Note("after", after=lost), Note("other", meets="lost"), Note("last"))
    said = run(tmp_path, photos, *notes)
    assert said.out.splitlines() == ["other False True 2", "last False True 2", f"part lost failed: {reason}"], said.err
    assert f"part lost failed, the rest goes on: {reason}" in said.err
    assert ("ZeroDivisionError: by nothing" in said.err) == (ends == "bug")
    assert (", in _end\n" in said.err) == (ends == "bug"), "the traceback of the process that failed"
    again = run(tmp_path, photos, *notes)
    assert again.out.splitlines()[:2] == ["lost False True 1", "lost after False True 1"], "it goes on in its folder"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGKILL, -9)])
def test_jobs_end_with_the_run_and_what_they_began_is_kept(
    number: signal.Signals, code: int, photos: Path, tmp_path: Path
) -> None:
    notes = (Note("one", ends="wait"), Note("two", ends="wait"))
    process = begin(tmp_path, photos, *notes)
    process.wait_until(lambda: len(list(processes_of(tmp_path))) == 2)
    jobs = [psutil.Process(job) for job in processes_of(tmp_path)]
    process.send(number)
    assert process.wait(PATIENCE) == code, process.err
    assert psutil.wait_procs(jobs, timeout=PATIENCE)[1] == []
    assert ("KeyboardInterrupt" in process.err) == (code == 1)
    assert len(list((tmp_path / "data" / "note").glob("*.partial/half"))) == 2
    assert run(tmp_path, photos, *notes).out.splitlines() == ["one False True 2", "two False True 2"]


def test_what_fails_and_is_no_part_stops_the_other_jobs(photos: Path, tmp_path: Path) -> None:
    said = run(tmp_path, photos, Note("needed", meets="two", ends="error"), Note("two", ends="wait"))
    assert said.process.exitcode == 1
    assert said.err.rstrip().endswith("PipelineError: no such word")
    assert not any(map(psutil.pid_exists, processes_of(tmp_path)))
    assert len(list((tmp_path / "data" / "note").glob("*.partial/half"))) == 2


@pytest.mark.parametrize(
    ("flow", "name", "settings", "jobs"),
    [
        ("reproduce", "demo", {}, min(len(os.sched_getaffinity(0)), 4)),
        ("reproduce", "table1", {}, 1),  # whose networks use all cores by themselves
        ("kclip-build", "demo", {"jobs": 4}, 1),  # of which each stage needs the one before
        ("reproduce", "demo", {"processes": 2}, 1),
        ("reproduce", "demo", {"nodes": 2}, 1),
        ("reproduce", "demo", {"dask_address": "local"}, 1),
        ("reproduce", "table1", {"jobs": 3, "processes": 2}, 3),
    ],
)
def test_there_are_as_many_jobs_as_a_machine_without_gpu_is_good_for(
    flow: str, name: str, settings: dict[str, int], jobs: int
) -> None:
    graph = CHAINS[flow].graph(preset(flow, name))
    assert sharing_of(graph, Settings(device="cpu", **settings)).jobs == jobs


def test_nodes_that_train_together_do_one_training_at_a_time() -> None:
    graph = CHAINS["reproduce"].graph(preset("reproduce", "demo"))
    with pytest.raises(PipelineError, match=r"^settings\.jobs=2: .*settings\.nodes=2 .* one training at a time"):
        sharing_of(graph, Settings(device="cpu", jobs=2, nodes=2))


def test_jobs_share_the_processes_that_decode_images() -> None:
    cores = len(os.sched_getaffinity(0))
    assert Settings().of_job(1).decoding_processes == min(cores, 16)
    assert Settings().of_job(2).decoding_processes == min(max(1, cores // 2), 16)
    assert Settings(workers=3).of_job(2).decoding_processes == 3
    assert Settings(processes=2).of_job(2).of_one_process().workers == max(1, cores // 4)
