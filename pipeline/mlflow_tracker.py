"""Runs in MLflow. The only file that imports it (about 3 s and a lot of memory).

Runs are addressed by id through `MlflowClient`, never through MLflow's "active run": that one is local to a thread,
and a stray `log_metric` in a task's thread would open a run that stays RUNNING for ever.
"""

import fcntl
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # not of every table that it creates
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
# The default is seven retries with back-off: a run would hang for four minutes when the server is down.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from pipeline.errors import PipelineError
from pipeline.settings import Settings
from pipeline.tracker import TrackedRun

_MOST_METRICS, _MOST_PARAMS = 1000, 100  # that MLflow takes at once
logger = logging.getLogger("mapet.tracker")
Item = TypeVar("Item")
_FLUSH_SECONDS = 5.0  # one write to SQLite costs 17-90 ms: metrics go out in batches


def tracking_uri(settings: Settings) -> str:
    return settings.tracking_uri or f"sqlite:///{settings.layout.tracking_database}"


@contextmanager
def mlflow_run(name: str, settings: Settings) -> Iterator["MlflowRun"]:
    """Open a top-level run in the settings' experiment.

    Raises:
        PipelineError: the tracking server does not answer.
    """
    uri = tracking_uri(settings)
    try:
        client, experiment = _experiment(uri, settings)
    except MlflowException as error:
        message = (
            f"MLflow at {uri} does not answer ({str(error).splitlines()[0]}); start it, or unset MAPET_TRACKING_URI to "
            "track into the data root"
        )
        raise PipelineError(_without_passwords(message)) from error
    created = client.create_run(experiment, run_name=name)
    with _ending(MlflowRun(client, experiment, created.info.run_id, settings)) as run:
        yield run


class MlflowRun:
    """A `TrackedRun` in MLflow."""

    def __init__(self, client: MlflowClient, experiment: str, run_id: str, settings: Settings) -> None:
        self._client, self._experiment, self.id, self._settings = client, experiment, run_id, settings
        self._metrics: list[Metric] = []
        self._flushed = time.monotonic()

    @property
    def link(self) -> str:
        uri = self._settings.tracking_uri.rstrip("/")
        is_page = uri.startswith(("http://", "https://")) and "@" not in uri  # a password belongs on no page
        return f"{uri}/#/experiments/{self._experiment}/runs/{self.id}" if is_page else ""

    def params(self, values: Mapping[str, Any]) -> None:
        for some in _batched(values.items(), _MOST_PARAMS):
            self._client.log_batch(self.id, params=[Param(key, str(value)) for key, value in some])

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        now = int(time.time() * 1000)
        self._metrics += [Metric(key, float(value), now, step) for key, value in values.items()]
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def tags(self, values: Mapping[str, str]) -> None:
        self._client.log_batch(self.id, tags=[RunTag(key, str(value)) for key, value in values.items()])

    def dataset(self, name: str, digest: str, path: Path) -> None:
        data = Dataset(name=name, digest=digest[:32], source_type="local", source=f'{{"uri": "{path}"}}')
        tags = [InputTag("mlflow.data.context", "input")]
        try:
            self._client.log_inputs(self.id, datasets=[DatasetInput(data, tags)])
        except MlflowException:  # another run recorded the same data set between MLflow's look-up and its insert
            self._client.log_inputs(self.id, datasets=[DatasetInput(data, tags)])

    def annotate(self, run_id: str, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        try:
            self._client.log_batch(run_id, metrics=[Metric(key, float(value), now, 0) for key, value in values.items()])
        except MlflowException as error:  # made by another tracker, or deleted
            logger.warning("MLflow does not take numbers for run %r (%s)", run_id, str(error).splitlines()[0])

    def file(self, path: Path) -> None:
        self._client.log_artifact(self.id, str(path))

    @contextmanager
    def child(self, name: str) -> Iterator[TrackedRun]:
        tags = {"mlflow.parentRunId": self.id}
        run = self._client.create_run(self._experiment, run_name=name, tags=tags)
        with _ending(MlflowRun(self._client, self._experiment, run.info.run_id, self._settings)) as child:
            yield child

    @contextmanager
    def comparable(self, name: str, group: str) -> Iterator[TrackedRun]:
        """In an experiment of its own, `<experiment>-<group>`: MLflow folds children away below their parents."""
        client, experiment = _experiment(tracking_uri(self._settings), self._settings, group)
        run = client.create_run(experiment, run_name=name, tags={"part_of_run": self.id})
        with _ending(MlflowRun(client, experiment, run.info.run_id, self._settings)) as comparable:
            yield comparable

    def flush(self) -> None:
        for some in _batched(self._metrics, _MOST_METRICS):
            self._client.log_batch(self.id, metrics=some)
        self._metrics, self._flushed = [], time.monotonic()

    def end(self, status: str) -> None:
        self.flush()
        self._client.set_terminated(self.id, status)


@contextmanager
def _ending(run: MlflowRun) -> Iterator[MlflowRun]:
    try:
        yield run
    except Exception as error:
        run.tags({"error": str(error)[:4000]})
        run.end("FAILED")
        raise
    except BaseException:
        run.end("KILLED")
        raise
    run.end("FINISHED")


def _batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of at most `size` items, in order."""
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some


def _without_passwords(text: str) -> str:
    """`http://user:password@host` -> `http://***@host`: messages go to logs and to Prefect's UI."""
    return re.sub(r"://[^/@\s]*@", "://***@", text)


def _experiment(uri: str, settings: Settings, group: str = "") -> tuple[MlflowClient, str]:
    """A client, whose constructor creates MLflow's SQLite database, and the experiment's id.

    Under a lock: processes that create the database together break it for good.
    """
    layout, name = settings.layout, f"{settings.experiment}-{group}" if group else settings.experiment
    for path in (layout.tracking_lock, layout.tracking_database):
        path.parent.mkdir(parents=True, exist_ok=True)
    with layout.tracking_lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        client = MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(name)
        if found is not None:
            return client, found.experiment_id
        location = None if settings.tracking_uri else layout.tracking_artifacts.as_uri()
        return client, client.create_experiment(name, artifact_location=location)
