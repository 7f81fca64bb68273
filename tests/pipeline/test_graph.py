"""Graphs of stages: what is made, what is left out, what is forgotten. The stages here write a word each."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from pipeline.chains.graph import Graph, Node, run_graph
from pipeline.chains.schedule import hours_on_jobs
from pipeline.configuration.config import KClipBuildConfig
from pipeline.data.inputs import ImageLocation
from pipeline.data.source_options import ImageSourceOptions
from pipeline.engine.errors import PipelineError
from pipeline.engine.settings import Settings
from pipeline.engine.stage import Made, Source, Stage, recipe_of
from pipeline.engine.tracker import TrackedRun
from pipeline.engine.workspace import StageResult, Workspace
from pipeline.stages.index_images import IndexImages
from storage.artifact import Built, Recipe
from tests.builds import make_photos


@dataclass(frozen=True)
class Word(Stage):
    """A word after those of another stage, if it has one; "no" cannot be written."""

    NAME: ClassVar[str] = "word"

    text: str
    after: Source | None = None

    def recipe(self, made: Made) -> Recipe:
        before = made.get(self.after)
        return recipe_of(self, {"text": self.text}, **({"after": before.digest} if before else {}))

    def build(self, made: Made, folder: Path, run: TrackedRun) -> Built:
        if self.text == "no":
            raise PipelineError("no such word")
        before = made.get(self.after)
        (folder / "words").write_text(((before.path / "words").read_text() + " " if before else "") + self.text)
        return Built({}, {})


@dataclass(frozen=True)
class Sentence(Stage):
    """All words that there are."""

    NAME: ClassVar[str] = "sentence"

    words: tuple[Source, ...]

    @property
    def may_take(self) -> tuple[Source, ...]:
        return self.words

    def recipe(self, made: Made) -> Recipe:
        return recipe_of(self, {}, **{str(n): made[one].digest for n, one in enumerate(self.words) if one in made})

    def build(self, made: Made, folder: Path, run: TrackedRun) -> Built:
        there = [(made[one].path / "words").read_text() for one in self.words if one in made]
        (folder / "words").write_text("; ".join(there))
        return Built({}, {})


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> IndexImages:
    photos = make_photos(tmp_path_factory.mktemp("graph") / "photos", train=2, val=1)
    return IndexImages(ImageLocation(ImageSourceOptions(path=str(photos))))


def graph_of(index: IndexImages, *nodes: tuple[Stage, str]) -> Graph:
    config = KClipBuildConfig()
    return Graph.of([Node(index, config), *(Node(stage, config, part=part) for stage, part in nodes)])


def words_of(result: StageResult) -> str:
    return (result.artifact.path / "words").read_text()


def unchecked(_: Made) -> None:
    """Find nothing against it."""


def test_what_takes_a_part_that_failed_is_left_out_and_the_rest_is_made(index: IndexImages, tmp_path: Path) -> None:
    lost = Word("no")
    after, other = Word("lost", after=lost), Word("one")
    nodes = [(lost, "part 1"), (after, "part 2"), (other, "part 3"), (Sentence((lost, after, other)), "all")]
    result = run_graph(graph_of(index, *nodes), Workspace(Settings(data_root=tmp_path)), check=unchecked)
    assert [(failure.part, failure.reason) for failure in result.failures] == [("part 1", "no such word")]
    assert [words_of(one) for one in result.results[1:]] == ["one", "one"]


def test_what_fails_and_is_no_part_ends_the_run_with_what_it_raised(index: IndexImages, tmp_path: Path) -> None:
    nodes = [(Word("no"), ""), (Word("one"), "")]
    with pytest.raises(PipelineError, match=r"^no such word$"):
        run_graph(graph_of(index, *nodes), Workspace(Settings(data_root=tmp_path)), check=unchecked)
    assert not (tmp_path / "word").exists() or not list((tmp_path / "word").glob("*/artifact.json"))


def test_a_plan_knows_how_long_a_graph_takes_on_several_jobs(index: IndexImages) -> None:
    one, two, three = Word("one"), Word("two"), Word("three")
    config, after = KClipBuildConfig(), Word("after", after=one)
    nodes = [Node(stage, config, stage.text) for stage in (one, two, after, three)]
    graph = Graph.of([Node(index, config), *nodes, Node(Sentence((two, three, after)), config)])
    hours = {"index_images": 1.0, "word-one": 2.0, "word-two": 3.0, "word-after": 2.0, "word-three": 1.5}
    assert [hours_on_jobs(graph, hours, jobs) for jobs in (1, 2, 3)] == [9.5, 5.5, 5.0]
    assert hours_on_jobs(graph, {}, 2) == 0.0


def test_equal_stages_are_made_once(index: IndexImages, tmp_path: Path) -> None:
    nodes = [(Word("one"), "a"), (Word("two", after=Word("one")), "b"), (Word("one"), "c")]
    graph = graph_of(index, *nodes)
    assert [node.part for node in graph.nodes] == ["", "a", "b"]
    made: list[Stage] = []

    def note(node: Node, make: Callable[[], StageResult]) -> StageResult:
        made.append(node.stage)
        return make()

    result = run_graph(graph, Workspace(Settings(data_root=tmp_path)), note, check=unchecked)
    assert words_of(result.results[-1]) == "one two"
    assert made == [node.stage for node in graph.nodes]


def test_what_a_stage_holds_is_held_to_build_it_and_not_to_find_it(index: IndexImages, tmp_path: Path) -> None:
    said: list[str] = []

    @contextmanager
    def hold(stage: Stage) -> Iterator[None]:
        said.append(f"{stage.NAME} holds")
        yield
        said.append(f"{stage.NAME} is done")

    workspace = Workspace(Settings(data_root=tmp_path), at_work=hold)
    for _ in range(2):
        run_graph(graph_of(index, (Word("one"), "")), workspace, check=unchecked)
    assert said == ["index_images holds", "index_images is done", "word holds", "word is done"]


def test_waiting_for_what_it_holds_is_no_part_of_what_a_stage_costs(index: IndexImages, tmp_path: Path) -> None:
    @contextmanager
    def wait(stage: Stage) -> Iterator[None]:
        time.sleep(0.5)
        yield

    workspace = Workspace(Settings(data_root=tmp_path), at_work=wait)
    begun = time.monotonic()
    made = workspace.make(Word("one"), workspace.made())
    assert made.artifact.notes["seconds"] < time.monotonic() - begun - 0.5


def test_the_check_comes_after_the_images_and_before_all_else(index: IndexImages, tmp_path: Path) -> None:
    def refuse(made: Made) -> None:
        assert index in made
        raise PipelineError("cannot be")

    with pytest.raises(PipelineError, match="cannot be"):
        run_graph(graph_of(index, (Word("one"), "")), Workspace(Settings(data_root=tmp_path)), check=refuse)
    assert not (tmp_path / "word").exists()


def test_what_a_stage_found_out_is_forgotten_once_it_is_made(index: IndexImages, tmp_path: Path) -> None:
    workspace = Workspace(Settings(data_root=tmp_path))
    made = workspace.made()
    workspace.make(index, made)
    assert made == workspace.made()
    assert not vars(made)["_found"], "a list of all images"


def test_every_node_comes_after_what_it_takes() -> None:
    from pipeline.chains.by_name import CHAINS
    from pipeline.configuration.presets import PRESETS

    for flow, presets in PRESETS.items():
        for preset in presets.values():
            there: set[Source] = set()
            for node in CHAINS[flow].graph(preset()).nodes:
                assert there.issuperset({*node.stage.takes, *node.stage.may_take}), node.name
                there.add(node.stage)
