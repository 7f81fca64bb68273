"""`mapet kclip-build`, `pretrain`, `evaluate` and `reproduce`: run a flow, and say what came out."""

import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from pipeline.chains.by_name import CHAINS
from pipeline.chains.graph import FlowResult, Graph, MakeNode, Node
from pipeline.chains.run import run_in_jobs
from pipeline.commands.configured import say_default
from pipeline.commands.run_names import name_of_run
from pipeline.commands.words import Words
from pipeline.configuration.config import KClipBuildConfig
from pipeline.engine.disk_space import readable_bytes
from pipeline.engine.logs import head_what_follows, without_passwords
from pipeline.engine.settings import Settings
from pipeline.engine.stage_record import BuildNotes
from pipeline.engine.workspace import StageResult, Workspace
from pipeline.stages.records import EvaluateRecord, PretrainRecord, ReportRecord, TokensRecord


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
        titles = _titles(graph)
        result = run_in_jobs(graph, workspace, _announced(titles), lambda node: titles[node.name])
    _print_result(result, settings)
    return 1 if result.failures else 0


def _titles(graph: Graph) -> Mapping[str, str]:
    """Return which each node is, of how many, by its name."""
    return {name: f"[{place}/{len(graph.nodes)}] {name}" for place, name in enumerate(graph.names, start=1)}


def _announced(titles: Mapping[str, str]) -> MakeNode:
    """Return what says before each node which it is, and then makes it."""

    def make_node(node: Node, make: Callable[[], StageResult]) -> StageResult:
        head_what_follows(titles[node.name])
        return make()

    return make_node


def _print_result(result: FlowResult, settings: Settings) -> None:
    print()
    width = max(len(one.label) for one in result.results)
    for one in result.results:
        made = one.artifact
        state = "cached" if one.cached else f"{BuildNotes.of(made).seconds or 0:.1f} s"
        print(f"  {one.label:<{width}} {state:>8}  {readable_bytes(made.bytes):>9}  {made.path}")
    for line in _where_time_went(result):
        print(line)
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


def _where_time_went(result: FlowResult) -> Iterator[str]:
    """Yield a table of what was built: each kind of stage, the seconds of all of them, and of the longest parts."""
    kinds: dict[str, list[BuildNotes]] = {}
    for one in result.results:
        if not one.cached:
            protocol = f" {one.label.split()[1]}" if one.stage == EvaluateRecord.STAGE else ""
            kinds.setdefault(f"{one.stage}{protocol}", []).append(BuildNotes.of(one.artifact))
    seconds = {kind: sum(notes.seconds or 0 for notes in of_kind) for kind, of_kind in kinds.items()}
    whole = sum(seconds.values())
    if len(kinds) < 2 or not whole:
        return
    width = max(map(len, kinds))
    yield f"\nWhere {whole:.0f} s of work went"
    for kind in sorted(kinds, key=lambda kind: -seconds[kind]):
        times, share, parts = f"{len(kinds[kind])} x", seconds[kind] / whole, _longest_parts(kinds[kind])
        yield f"  {kind:<{width}} {times:>4} {seconds[kind]:>8.1f} s {share:>4.0%}  {parts}".rstrip()


def _longest_parts(built: Sequence[BuildNotes]) -> str:
    parts: Counter[str] = Counter()
    for notes in built:
        parts.update({name: part.seconds for name, part in notes.parts.items()})
    return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in parts.most_common(3) if seconds >= 0.05)


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
