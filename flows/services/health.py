"""Whether a service works, not only runs."""

from datetime import datetime

from flows.services.catalogue import MLFLOW
from flows.services.prefect_api import PrefectApi, answers
from flows.services.processes import Started
from flows.services.settings import WORK_POOL, ServiceSettings
from pipeline.engine.errors import PipelineError


def works(service: Started, settings: ServiceSettings, *, heard_since: datetime | None = None) -> bool:
    """Tell whether a server answers, or Prefect has heard from a worker since its start (or since `heard_since`)."""
    api = PrefectApi(settings.prefect_url)
    if service.port:
        return answers(f"{settings.mlflow_url}/health") if service.name == MLFLOW else api.healthy
    try:
        heard = api.heartbeats(WORK_POOL).get(service.name)
    except PipelineError:
        return False
    return heard is not None and heard > max(service.started, heard_since or service.started)
