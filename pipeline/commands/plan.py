"""`mapet plan`: what a command would do and why, and what it costs."""

from pipeline.chains.by_name import CHAINS
from pipeline.chains.plan import kept_words, plan, total_words
from pipeline.chains.schedule import schedule_words
from pipeline.chains.spared import spared_words
from pipeline.commands.configured import say_default
from pipeline.commands.words import Words
from pipeline.configuration.config import KClipBuildConfig
from pipeline.engine.settings import Settings


def print_plan(words: Words, config: KClipBuildConfig, settings: Settings) -> int:
    """Print every stage with its state; returns 2 if one cannot be made."""
    say_default(words)
    planned = plan(words.flow, config, settings)
    width = max(len(stage.stage) for stage in planned)
    for stage in planned:
        cost = f" ({stage.cost.words})" if stage.cost else ""
        print(f"  {stage.stage:<{width}} {stage.state:<7} {stage.reason}{cost}")
    on_jobs = schedule_words(CHAINS[words.flow].graph(config, settings), planned, settings)
    kept, spared = kept_words(words.flow, config, planned), spared_words(words.flow, config, planned, settings)
    for summary in (total_words(planned), on_jobs, kept, spared):
        if summary:
            print(f"\n{summary}")
    return 2 if any(stage.state == "cannot" for stage in planned) else 0
