"""Names of runs in MLflow, whose table shows nothing else of them at first: what tells a run from its like."""

import json
from collections.abc import Iterator
from textwrap import shorten
from typing import Any

from models.options import Options
from pipeline.presets import PRESETS

_LONGEST = 240  # MLflow's column has 250


def name_of_run(flow: str, label: str, config: Options) -> str:
    """`pretrain demo pretrain.seed=7`: the flow, its preset, and the options that are not the preset's.

    Args:
        label: the preset's name; of anything else, the options are compared with the defaults.
    """
    usual = PRESETS[flow].get(label, type(config))()
    return shorten(" ".join([flow, label, *_differences(config, usual)]), _LONGEST, placeholder=" ...")


def _differences(config: Options, usual: Options, prefix: str = "") -> Iterator[str]:
    for name in type(config).model_fields:
        one, other = getattr(config, name), getattr(usual, name, None)
        if isinstance(one, Options) and isinstance(other, Options):
            yield from _differences(one, other, f"{prefix}{name}.")
        elif one != other:
            yield f"{prefix}{name}={_as_given(one)}"


def _as_given(value: Any) -> str:
    """As in the words of a command."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), default=str)
