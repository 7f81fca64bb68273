"""For every test: no telemetry, no settings from outside, and shapes of tensors checked as annotated."""

import os

from jaxtyping import install_import_hook

from pipeline.openmp import share_cores

share_cores()  # as the command line does
os.environ["DO_NOT_TRACK"] = "true"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"

for name in [name for name in os.environ if name.startswith("MAPET_")]:
    del os.environ[name]  # a test's settings are the ones it writes down

install_import_hook("models", "beartype.beartype")
