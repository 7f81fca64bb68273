"""Prefect flows: the last coat over `pipeline`, the only package that knows a server exists."""

import os

from pipeline.engine.threads import share_cores

# Defaults of Prefect's own process environment; Prefect reads them while it is imported, hence before any `import
# prefect` of this package. Whoever sets them otherwise keeps his choice.
os.environ.setdefault("DO_NOT_TRACK", "true")  # the one value that both Prefect and MLflow take for "no telemetry"
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
# A flow run without a server starts a temporary one; on a busy machine its first start takes longer than 20 seconds.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
share_cores()
