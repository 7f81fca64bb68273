"""What the words behind a command mean: `[FLOW] [PRESET] [option=value ...]`. Nothing that was said is dropped."""

import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.configuration.presets import PRESETS
from pipeline.engine.errors import PipelineError
from pipeline.engine.words import did_you_mean

logger = logging.getLogger("mapet.stages")
DEFAULT_FLOW, DEFAULT_PRESET = "kclip-build", "demo"


@dataclass(frozen=True)
class Words:
    """`options` are `section.option=value`; `is_default`: no preset was named, and nothing else that could mean one."""

    flow: str
    preset: str
    options: tuple[str, ...] = ()
    is_default: bool = False


def read_words(command: str, words: Sequence[str], *, flow: str = "") -> Words:
    """Read the words behind a command as they were typed.

    Args:
        command: how the user began, for messages.
        flow: of a command that is one; "": its name may stand first.

    Raises:
        PipelineError: options without the preset that they change, or a preset that the flow does not have.
    """
    if not flow and words and words[0] in PRESETS:
        command, flow, words = f"{command} {words[0]}", words[0], words[1:]
    if not words:
        return Words(flow or DEFAULT_FLOW, DEFAULT_PRESET, is_default=True)
    name, *options = words
    if "=" in name:
        raise PipelineError(_no_preset(command, flow or DEFAULT_FLOW, words))
    _require_preset(command, flow, name)
    say_repeated(options)
    return Words(flow or DEFAULT_FLOW, name, tuple(options))


def is_option(word: str) -> bool:
    """Return whether a word sets an option and names no path: `./a=b` is a path."""
    name, equals, _ = word.partition("=")
    return bool(equals) and "/" not in name


def _no_preset(command: str, flow: str, words: Sequence[str]) -> str:
    named = next((word for word in words if word in PRESETS[flow]), "PRESET")
    options = shlex.join(word for word in words if word != named)
    return (
        f"{words[0]!r} changes an option of a preset, and none stands before it: `mapet {command} {named} {options}`; "
        f"presets of {flow}: {', '.join(PRESETS[flow])}"
    )


def _require_preset(command: str, flow: str, name: str) -> None:
    presets = PRESETS[flow or DEFAULT_FLOW]
    if name in presets:
        return
    others = [other for other in PRESETS if name in PRESETS[other]]
    if others and not flow:
        hint = f"it is one of {' and '.join(others)}: `mapet {command} {others[0]} {name}`"
    elif others:
        hint = f"it is one of {' and '.join(others)}"
    else:
        hint = did_you_mean(name, [*presets, *(() if flow else PRESETS)]).strip()
    flows = "" if flow else f"; flows: {', '.join(PRESETS)}"
    what = f"{flow or DEFAULT_FLOW} has no preset {name!r}"
    what = f"{what} {hint}" if hint.startswith("(") else f"{what}; {hint}" if hint else what
    raise PipelineError(f"{what}; presets: {', '.join(presets)}{flows}")


def say_repeated(options: Sequence[str]) -> None:
    """Say which options are given two values; they are applied in order, so the last one counts."""
    given: dict[str, str] = {}
    for option in options:
        name, _, value = option.partition("=")
        if (before := given.get(name, value)) != value:
            logger.warning("%s is given twice, as %s and as %s; the last one counts", name, before, value)
        given[name] = value
