"""One deployment per preset, every parameter spelled out.

`flows.register` hands them to a server. Whoever prefers Prefect's own command writes the file that it reads, `python -m
flows.deployments > prefect.yaml`, which is never committed, so that it cannot drift from the presets. Nothing here
names a path of a machine: runs work in the folder in which their worker was started, so that is where the default
`data` of `MAPET_DATA_ROOT` lies.
"""

import sys
from inspect import cleandoc
from typing import Any

import yaml  # type: ignore[import-untyped]

from flows.services.settings import WORK_POOL
from pipeline.configuration.presets import PRESETS

# The hooks of a killed run are run by a script inside `prefect/runner`. Python would put that folder first on its path,
# and `prefect/runner/storage.py` would hide our package `storage`.
_ENVIRONMENT = {"PYTHONSAFEPATH": "1"}

# Runs print to a file of their own (flows/run_logs.py): a pipe to the worker would end with it.
_JOB = {"working_dir": ".", "stream_output": False, "env": _ENVIRONMENT}

# The whole pipeline, end to end, every night: minutes when something changed, seconds when nothing did. Whether it is
# active is not said, so that it stays as people want it; a new one is.
_NIGHTLY = {"slug": "nightly", "cron": "0 3 * * *", "timezone": "UTC"}

_OF_FLOWS = {"reproduce": {"cell": "", "cells_as_runs": False}}  # what else a flow takes (flows/reproduce.py)

_HEADER = """\
# Written by `python -m flows.deployments > prefect.yaml` from pipeline/configuration/presets/; change it there.
#
#   prefect work-pool create mapet --type process
#   python -m flows.register                       (or `prefect --no-prompt deploy --all`, which undoes what was changed
#                                                  of the deployments in Prefect)
#   prefect worker start --pool mapet              (in the folder that data should go to)
#   prefect deployment run kclip-build/demo --watch
#
# The worker needs these packages installed (`pip install -e .`); nothing is pulled or copied.
"""


def deployments() -> dict[str, Any]:
    """List what is registered, laid out as in a prefect.yaml."""
    return {
        "name": "mapet",
        # Relative to the worker's folder, as `working_dir` below: without these, Prefect would work in a temporary
        # folder (and delete it), or in the folder where `prefect deploy` was called, on whatever machine that was.
        "pull": [{"prefect.deployments.steps.set_working_directory": {"directory": "."}}],
        "deployments": [_deployment(flow, name) for flow, presets in PRESETS.items() for name in presets],
    }


def _deployment(flow: str, name: str) -> dict[str, Any]:
    preset, function = PRESETS[flow][name], flow.replace("-", "_")
    schedule = {"schedules": [_NIGHTLY]} if (flow, name) == ("reproduce", "demo") else {}
    return {
        "name": name,
        "description": cleandoc(preset.__doc__ or ""),
        "tags": [flow],
        "entrypoint": f"flows.{function}.{function}",
        "parameters": {"config": preset().model_dump(mode="json"), "overrides": [], **_OF_FLOWS.get(flow, {})},
        **schedule,
        "work_pool": {"name": WORK_POOL, "job_variables": _JOB},
    }


class _Dumper(yaml.SafeDumper):
    """Spells repeated values out instead of pointing at them, and keeps the lines of long texts."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def render() -> str:
    """Write the deployments as the text of a prefect.yaml."""
    return _HEADER + yaml.dump(deployments(), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


if __name__ == "__main__":
    sys.stdout.write(render())
