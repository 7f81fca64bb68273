"""`mapet kclip-build`, `pretrain`, `evaluate` and `reproduce`: run a flow, and say what came out."""

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.chains.by_name import CHAINS
from pipeline.chains.graph import FlowResult, Graph, MakeNode, Node
from pipeline.chains.run import run
from pipeline.commands.configured import say_default
from pipeline.commands.run_names import name_of_run
from pipeline.commands.words import Words
from pipeline.configuration.config import KClipBuildConfig
from pipeline.engine.disk_space import readable_bytes
from pipeline.engine.logs import head_what_follows, without_passwords
from pipeline.engine.settings import Settings
from pipeline.engine.stage_record import BuildNotes
from pipeline.engine.workspace import StageResult, Workspace
from pipeline.stages.records import PretrainRecord, ReportRecord, TokensRecord


def run_flow(words: Words, config: KClipBuildConfig, settings: Settings) -> int:
    """Run the flow of the words; returns 1 if parts of it failed."""
    flow = words.flow
    if settings.node_rank:
        from pipeline.training.launch import join_training

        join_training(settings)
        return 0
    say_default(words)
    with Workspace(settings).tracked(name_of_run(flow, words.preset, config), config) as workspace:
        graph = CHAINS[flow].graph(config, settings)
        result = run(graph, workspace, _announced(graph))
    _print_result(result, settings)
    return 1 if result.failures else 0


def _announced(graph: Graph) -> MakeNode:
    """Return what says before each node which it is, of how many, and then makes it."""
    places = {name: place for place, name in enumerate(graph.names, start=1)}

    def make_node(node: Node, make: Callable[[], StageResult]) -> StageResult:
        head_what_follows(f"[{places[node.name]}/{len(places)}] {node.name}")
        return make()

    return make_node


def _print_result(result: FlowResult, settings: Settings) -> None:
    print()
    width = max(len(one.label) for one in result.results)
    for one in result.results:
        made = one.artifact
        state = "cached" if one.cached else f"{BuildNotes.of(made).seconds or 0:.1f} s"
        print(f"  {one.label:<{width}} {state:>8}  {readable_bytes(made.bytes):>9}  {made.path}")
    if result.all_cached:
        print("\nEvery stage was cached: nothing had to be done.")
    for failure in result.failures:
        print(f"\nFAILED: {failure.part}\n  {failure.reason}")
    if result.failures:
        print("\nEverything else is done; run the same command again for what failed.")
    print()
    for title, path in _products(result):
        print(f"{title:<9}{path}")
    print(f"{'MLflow':<9}{mlflow_hint(settings)}")


def _products(result: FlowResult) -> Iterator[tuple[str, Path]]:
    """Yield what a user came for, with a title."""
    titles = {TokensRecord.STAGE: "Tokens", PretrainRecord.STAGE: "Backbone", ReportRecord.STAGE: "Report"}
    files = {TokensRecord.STAGE: "tokens.zarr", PretrainRecord.STAGE: "", ReportRecord.STAGE: "report.html"}
    for one in result.results:
        if one.stage in files:
            yield titles[one.stage], one.artifact.path / files[one.stage]


def mlflow_hint(settings: Settings) -> str:
    """Return how to look at the runs: a command to copy, or the server's address."""
    if settings.tracking_uri:
        return without_passwords(settings.tracking_uri)
    return shlex.join(["mlflow", "ui", "--backend-store-uri", f"sqlite:///{settings.layout.tracking_database}"])
