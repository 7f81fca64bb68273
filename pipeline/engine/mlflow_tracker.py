"""Runs in MLflow. The only file that imports it (about 3 s and a lot of memory).

Runs are addressed by id through `MlflowClient`, never through MLflow's "active run": that one is local to a thread,
and a stray `log_metric` in a task's thread would open a run that stays RUNNING for ever.

Whatever is wrong with the tracker is a sentence and costs no result. A server that goes away in the middle of a run, or
a disk that is full under the database, stops nothing: what it should have been told waits in a `RetryQueue`, and what
it was never told is said at the end. An experiment that was deleted is restored, as is a run that is deleted while it
is at work. A database below the data root that cannot be used (damaged, locked, read-only, a newer MLflow's) leaves a
run untracked. Only a server that the settings name, and that does not answer at the beginning or lets nobody in, is an
error: nothing is built yet, and whether to do without its curves is for whoever named it to say.

A process that is killed cannot end its runs, which would be RUNNING for ever. The next run on the same host ends them,
or whoever goes on with its work, on whatever host: in the same run, which then is RUNNING again. MLflow would keep a
point of a curve as often as it is told; here it is told once, also if it is computed again since the last checkpoint.
"""

import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from textwrap import shorten
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import psutil

os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # not of every table that it creates
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
# The default is seven retries with back-off, of 120 s each: a run would hang for minutes when the server is down.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    Experiment,
    InputTag,
    LifecycleStage,
    Metric,
    Param,
    Run,
    RunTag,
)
from mlflow.exceptions import MlflowException

from pipeline.engine.errors import PipelineError
from pipeline.engine.kept_run import KeptRun
from pipeline.engine.logs import without_passwords
from pipeline.engine.retry_queue import Away, Message, Refused, RetryQueue
from pipeline.engine.settings import Settings
from pipeline.engine.tracker import JoinRun, NoTracking, TrackedRun
from pipeline.engine.tracking_database import lead_files_here
from storage.files import TEMPORARY, replace_file
from storage.locks import locked

logger = logging.getLogger("mapet.stages")
_MOST_METRICS, _MOST_PARAMS = 1000, 100  # that MLflow takes at once
_LONGEST_REASON = 300  # of a server that answers with a page
Item = TypeVar("Item")
_HOST, _PROCESS = "host", "process"  # tags of every run: whose it is
_CONTINUED, _ERROR = "continued", "error"  # since when (milliseconds since 1970) it is that process's; why it ended
_SAME_MOMENT = 2.0  # seconds by which the clocks of a process's start and of a run's may differ
_PATIENCE = 1.0  # seconds to wait for the lock of another run without saying so
_CREATION = "the run itself"
_FLUSH_SECONDS = 5.0  # one write to SQLite costs 17-90 ms: metrics go out in batches
# Else each retry is a line, and a full disk a traceback for each message; the retry queue says it once.
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def tracking_uri(settings: Settings) -> str:
    return settings.tracking_uri or f"sqlite:///{settings.layout.tracking_database}"


@contextmanager
def mlflow_run(name: str, settings: Settings) -> Iterator[TrackedRun]:
    """Open a top-level run in the settings' experiment; one that tracks nothing where the database below the data root
    cannot be used.

    Raises:
        PipelineError: the tracking server that the settings name does not answer, or not to us.
    """
    client = _connected(settings)
    if client is None:
        yield NoTracking()
        return
    with _queue_for(client) as retry_queue, _ending(MlflowRun(client, retry_queue, settings, name)) as run:
        yield run


@contextmanager
def joined_run(name: str, settings: Settings, run_id: str, experiment: str) -> Iterator[TrackedRun]:
    """Go on in a run that another process of this machine has begun, and will end."""
    client = MlflowClient(tracking_uri=_address(settings))
    with _queue_for(client) as retry_queue:
        yield MlflowRun(client, retry_queue, settings, name, begun=(run_id, experiment))


@contextmanager
def _queue_for(client: MlflowClient) -> Iterator[RetryQueue]:
    retry_queue = RetryQueue(without_passwords(f"MLflow at {client.tracking_uri}"))
    try:
        yield retry_queue
    finally:
        retry_queue.close()


def _connected(settings: Settings) -> MlflowClient | None:
    """Return a client whose experiment is there and takes runs; None where the database below the data root cannot be
    used."""
    uri = _address(settings)
    try:
        client = _client(uri, settings)
        _experiment(client, settings)
        _end_abandoned_runs(client, settings)
        return client
    except Exception as error:  # of SQLite, SQLAlchemy, Alembic, requests, MLflow: they share no class
        if not settings.tracking_uri:
            logger.warning(
                "MLflow's database %s cannot be used (%s); this run is not tracked, its results do not depend on that. "
                "If no other program holds it, mend it or move it away: the next run makes a new one",
                *(settings.layout.tracking_database, _first_line(error)),
            )
            return None
        if isinstance(error, OSError):  # of our own lock's file; those of the network are MLflow's
            raise
        raise PipelineError(_refusal(uri, error)) from None  # whose text has the address


def _refusal(uri: str, error: Exception) -> str:
    what, remedy = "does not answer", "start it"
    if isinstance(error, MlflowException) and error.get_http_status_code() in (401, 403):
        what = "does not let us in"
        remedy = "give MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or have its host allowed there"
    otherwise = "or unset MAPET_TRACKING_URI to track into the data root"
    return without_passwords(f"MLflow at {uri} {what} ({_first_line(error)}); {remedy}, {otherwise}")


class MlflowRun:
    """A `TrackedRun` in MLflow. `id` and `link` are "" as long as the server has not answered."""

    def __init__(
        self,
        client: MlflowClient,
        retry_queue: RetryQueue,
        settings: Settings,
        name: str,
        *,
        group: str = "",
        tags: Callable[[], Mapping[str, str]] = dict,
        kept: KeptRun | None = None,
        begun: tuple[str, str] = ("", ""),
    ) -> None:
        """Begin a run, or go on in the one that is `kept`; `group` as in `comparable`. `tags` is called when the run is
        created: by then the run that it names has its id. `begun`: id and experiment of one that there is."""
        self._client, self._retry_queue, self._settings, self._name = client, retry_queue, settings, name
        self.id, self._experiment = begun
        self._metrics: list[Metric] = []
        self._known_points: set[tuple[str, int]] = set()  # names and steps, also by a process that was stopped
        self._flushed = time.monotonic()
        started = _now()

        def create() -> None:
            self._experiment = _experiment(client, settings, group)
            whose = {_HOST: socket.gethostname(), _PROCESS: str(os.getpid()), **tags()}
            if kept is None or not self._go_on(kept, whose):
                created = client.create_run(self._experiment, start_time=started, run_name=name, tags=whose)
                self.id = created.info.run_id
            if kept is not None:
                kept.keep(self.id)

        if not self.id:
            self._send(_CREATION, create)

    def _go_on(self, kept: KeptRun, whose: Mapping[str, str]) -> bool:
        """Go on in the run that is kept, if the server has it and no other process is at work in it; return whether it
        did."""
        missed = []
        for run_id in kept.ids():
            run = _found(self._client, run_id)
            if run is None or _is_anothers(run):
                missed.append(run_id)
                continue
            _end_runs_beside(self._client, self._settings, run)
            for key in run.data.metrics:
                self._known_points |= {(key, point.step) for point in self._client.get_metric_history(run_id, key)}
            mine = {**whose, _CONTINUED: str(_now())}  # before it is RUNNING, or another process would end it
            self._client.log_batch(run_id, tags=[RunTag(key, value) for key, value in mine.items()])
            if _ERROR in run.data.tags:
                self._client.delete_tag(run_id, _ERROR)
            self._client.update_run(run_id, status="RUNNING")
            self.id, self._experiment = run_id, run.info.experiment_id
            logger.info("%s goes on in its run %s of MLflow", self._name, run_id)
            return True
        if missed:
            logger.warning(
                "%s was begun in the run %s, which MLflow at %s does not have, or in which another process is at work; "
                "a new run has its curves",
                *(self._name, " or ".join(missed), without_passwords(str(self._client.tracking_uri))),
            )
        return False

    @property
    def link(self) -> str:
        uri = (self._settings.tracking_page or str(self._client.tracking_uri)).rstrip("/")
        is_page = uri.startswith(("http://", "https://"))
        return f"{uri}/#/experiments/{self._experiment}/runs/{self.id}" if is_page and self.id else ""

    def params(self, values: Mapping[str, Any]) -> None:
        for some in _batched([Param(key, str(value)) for key, value in values.items()], _MOST_PARAMS):
            self._send("parameters", partial(self._log, params=some))

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        now = _now()
        self._metrics += [Metric(key, float(value), now, step) for key, value in values.items()]
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def tags(self, values: Mapping[str, str]) -> None:
        some = [RunTag(key, str(value)) for key, value in values.items()]
        self._send("tags", partial(self._log, tags=some))

    def dataset(self, name: str, digest: str, path: Path) -> None:
        data = Dataset(name=name, digest=digest[:32], source_type="local", source=f'{{"uri": "{path}"}}')
        inputs = [DatasetInput(data, [InputTag("mlflow.data.context", "input")])]

        def send() -> None:
            try:
                self._client.log_inputs(self.id, datasets=inputs)
            except MlflowException as error:
                if _is_away(error):
                    raise
                # Another run recorded the same data set between MLflow's look-up and its insert.
                self._client.log_inputs(self.id, datasets=inputs)

        self._send("an input", send)

    def annotate(self, run_id: str, values: Mapping[str, float]) -> None:
        if not run_id:  # made untracked
            return
        now = _now()
        some = [Metric(key, float(value), now, 0) for key, value in values.items()]
        # Refused when the run was made by another tracker, or deleted.
        self._send(f"numbers for run {run_id!r}", lambda: self._client.log_batch(run_id, metrics=some))

    def file(self, path: Path) -> None:
        def send() -> None:
            if not path.exists():  # published under another name while the server was away
                raise Refused("it has moved meanwhile")
            self._client.log_artifact(self.id, str(path))

        self._send(f"the file {path.name}", send)

    @contextmanager
    def child(self, name: str) -> Iterator[TrackedRun]:
        def tags() -> Mapping[str, str]:
            return {"mlflow.parentRunId": self.id}

        with _ending(MlflowRun(self._client, self._retry_queue, self._settings, name, tags=tags)) as child:
            yield child

    @contextmanager
    def comparable(self, name: str, group: str, kept: KeptRun) -> Iterator[TrackedRun]:
        """Begin a run in an experiment of its own, `<experiment>-<group>`: MLflow folds children away below their
        parents."""

        def tags() -> Mapping[str, str]:
            return {"part_of_run": self.id}

        run = MlflowRun(self._client, self._retry_queue, self._settings, name, group=group, tags=tags, kept=kept)
        with _ending(run) as comparable:
            yield comparable

    def elsewhere(self) -> JoinRun:
        return partial(joined_run, self._name, self._settings, self.id, self._experiment)

    def flush(self) -> None:
        for some in _batched(self._metrics, _MOST_METRICS):
            self._send("metrics", partial(self._log_new, some))
        self._metrics, self._flushed = [], time.monotonic()

    def end(self, status: str) -> None:
        self.flush()
        ended = _now()
        self._send("its end", lambda: self._client.set_terminated(self.id, status, end_time=ended))

    def _log(self, **values: Any) -> None:
        self._client.log_batch(self.id, **values)  # whose id may be known only now

    def _log_new(self, metrics: Sequence[Metric]) -> None:
        new: dict[tuple[str, int], Metric] = {}
        for each in metrics:
            if (each.key, each.step) not in self._known_points:
                new.setdefault((each.key, each.step), each)
        if new:
            self._log(metrics=list(new.values()))
            self._known_points |= new.keys()

    def _send(self, what: str, call: Callable[[], object]) -> None:
        def send() -> None:
            if what != _CREATION and not self.id:
                raise Refused("nor the run itself")
            try:
                self._call(call)
            except Refused:
                raise
            except Exception as error:  # whatever is wrong with a tracker is no reason to stop
                kind = Away if _is_away(error) else Refused
                raise kind(without_passwords(_first_line(error))) from error

        self._retry_queue.put(Message(what, self._name, send))

    def _call(self, call: Callable[[], object]) -> None:
        """Call it once, and once more if it fails because somebody has deleted the run or its experiment meanwhile."""
        try:
            call()
        except MlflowException as error:
            if _is_away(error) or not self._restored():
                raise
            call()

    def _restored(self) -> bool:
        """Restore the run or its experiment where somebody has deleted it; return whether there was one to restore."""
        before = self._client.get_experiment(self._experiment) if self._experiment else None
        if before is not None and before.lifecycle_stage == LifecycleStage.DELETED:
            _restore(self._client, before)
            return True
        if self.id and self._client.get_run(self.id).info.lifecycle_stage == LifecycleStage.DELETED:
            self._client.restore_run(self.id)
            logger.warning("MLflow's run %r was deleted while it is at work; it is restored", self._name)
            return True
        return False


@contextmanager
def _ending(run: MlflowRun) -> Iterator[MlflowRun]:
    try:
        yield run
    except Exception as error:
        run.tags({_ERROR: str(error)[:4000]})
        run.end("FAILED")
        raise
    except BaseException:
        run.end("KILLED")
        raise
    run.end("FINISHED")


def _batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of at most `size` items, in order."""
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some


def _now() -> int:
    """Return milliseconds since 1970, as MLflow wants them."""
    return int(time.time() * 1000)


def _first_line(error: Exception) -> str:
    return shorten((str(error) or type(error).__name__).splitlines()[0], _LONGEST_REASON, placeholder=" ...")


def _is_away(error: Exception) -> bool:
    """Return whether the same call may succeed later: no answer, or an error of the server and not of the call."""
    if isinstance(error, MlflowException):
        return bool(error.get_http_status_code() >= 500)
    return isinstance(error, OSError)  # also what `requests` raises


def _address(settings: Settings) -> str:
    """Return `tracking_uri`, with the user and password of a server moved to where MLflow looks for them: an address
    that has none can stand in messages and links."""
    address = urlsplit(tracking_uri(settings))
    if address.scheme not in ("http", "https") or address.username is None:
        return tracking_uri(settings)
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(address.username)
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(address.password or "")
    return address._replace(netloc=address.netloc.rpartition("@")[2]).geturl()


def _client(uri: str, settings: Settings) -> MlflowClient:
    if not settings.tracking_uri:
        provide_database(settings)
    return MlflowClient(tracking_uri=uri)


def _experiment(client: MlflowClient, settings: Settings, group: str = "") -> str:
    """Return the id of the experiment, which is made or restored if need be. Under a lock: of processes that create it
    together all but one fail."""
    layout, name = settings.layout, f"{settings.experiment}-{group}" if group else settings.experiment
    with _locked(settings):
        found = client.get_experiment_by_name(name)
        if found is not None:
            if found.lifecycle_stage == LifecycleStage.DELETED:
                _restore(client, found)
            return str(found.experiment_id)
        location = None if settings.tracking_uri else layout.tracking_artifacts.as_uri()
        return str(client.create_experiment(name, artifact_location=location))


def _restore(client: MlflowClient, experiment: Experiment) -> None:
    client.restore_experiment(experiment.experiment_id)
    logger.warning("MLflow's experiment %r was deleted; it is restored, for these runs go there", experiment.name)


def _end_abandoned_runs(client: MlflowClient, settings: Settings) -> None:
    """End those of this host whose process is gone: KILLED, at the moment of their last number."""
    for run in _running(client, settings, socket.gethostname()):
        if not _is_alive(run):
            _end_abandoned(client, run)


def _end_runs_beside(client: MlflowClient, settings: Settings, taken: Run) -> None:
    """End the other runs of a process of another host whose work, and run, this process takes over."""
    host, process = (taken.data.tags.get(key, "") for key in (_HOST, _PROCESS))
    if taken.info.status != "RUNNING" or host in ("", socket.gethostname()):
        return
    for run in _running(client, settings, host):
        if run.data.tags.get(_PROCESS) == process and run.info.run_id != taken.info.run_id:
            _end_abandoned(client, run)


def _running(client: MlflowClient, settings: Settings, host: str) -> Sequence[Run]:
    name = settings.experiment
    ours = [each for each in client.search_experiments() if each.name == name or each.name.startswith(f"{name}-")]
    of_that_host = f"attributes.status = 'RUNNING' and tags.{_HOST} = '{host}'"
    found: list[Run] = client.search_runs([each.experiment_id for each in ours], of_that_host)
    return found


def _end_abandoned(client: MlflowClient, run: Run) -> None:
    with suppress(MlflowException):  # another user's, or another process was first
        client.set_tag(run.info.run_id, _ERROR, "its process is gone: killed, or the machine stopped")
        client.set_terminated(run.info.run_id, "KILLED", end_time=_last_word(client, run))


def _found(client: MlflowClient, run_id: str) -> Run | None:
    """Return the run, unless the server does not have it or somebody has deleted it."""
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if _is_away(error):
            raise
        return None
    return run if run.info.lifecycle_stage == LifecycleStage.ACTIVE else None


def _is_anothers(run: Run) -> bool:
    """Return whether another process of this host is at work in the run, as far as can be seen from here."""
    host, process = (run.data.tags.get(key, "") for key in (_HOST, _PROCESS))
    is_elsewhere = run.info.status != "RUNNING" or host != socket.gethostname() or process == str(os.getpid())
    return not is_elsewhere and _is_alive(run)


def _is_alive(run: Run) -> bool:
    """Return whether the process that made it, or went on in it, still runs; one that began later has only got its
    number."""
    number, continued = (run.data.tags.get(key, "") for key in (_PROCESS, _CONTINUED))
    if not number.isdigit():
        return True  # somebody else's run, of which this knows nothing
    try:
        began = psutil.Process(int(number)).create_time()
    except psutil.NoSuchProcess:
        return False
    since = int(continued) if continued.isdigit() else run.info.start_time
    return began < since / 1000 + _SAME_MOMENT


def _last_word(client: MlflowClient, run: Run) -> int:
    """Return when the run told its last number, or began; milliseconds since 1970."""
    some = next(iter(run.data.metrics), None)
    history = client.get_metric_history(run.info.run_id, some) if some else []
    return max((point.timestamp for point in history), default=run.info.start_time)


def provide_database(settings: Settings) -> None:
    """Make MLflow's SQLite database below the data root, with all its tables, whole or not at all; if there is one that
    was moved here, update the addresses of its files.

    A process that is killed among its eighty steps, or two that take them together, leave a file that no later process
    can open.

    Raises:
        sqlite3.Error: what is there cannot be used.
    """
    path = settings.layout.tracking_database
    with _locked(settings):
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f"{path.name}.*{TEMPORARY}*"):
            left.unlink()
        if not path.exists() or not path.stat().st_size:
            with replace_file(path) as temporary:
                MlflowClient(tracking_uri=f"sqlite:///{temporary}")
        lead_files_here(settings.layout)


@contextmanager
def _locked(settings: Settings) -> Iterator[None]:
    path = settings.layout.tracking_lock

    def busy() -> None:
        logger.info("another run makes MLflow's database or an experiment (%s is locked); waiting for it", path)

    with locked(path, busy=busy, patience=_PATIENCE):
        yield
