"""Names of runs in MLflow, whose table shows nothing else of them at first: what tells a run from its like."""

from textwrap import shorten

from models.options import Options
from pipeline.configuration.overrides import differences
from pipeline.configuration.presets import PRESETS

_LONGEST = 240  # MLflow's column has 250


def name_of_run(flow: str, label: str, config: Options) -> str:
    """Return `pretrain demo pretrain.seed=7`: the flow, its preset, and the options that are not the preset's.

    Args:
        label: the preset's name; of anything else, the options are compared with the defaults.
    """
    usual = PRESETS[flow].get(label, type(config))()
    return shorten(" ".join([flow, label, *differences(config, usual)]), _LONGEST, placeholder=" ...")
