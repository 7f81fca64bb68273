"""What runs, since when, and whether it works."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from flows.services.catalogue import with_ports_in_use
from flows.services.health import works
from flows.services.processes import ServiceFolder, Started
from flows.services.settings import HOST, WORK_POOL, ServiceSettings

# Workers are heard every 30 seconds; Prefect itself calls one offline after three that were missed.
_SILENCE = timedelta(seconds=90)


@dataclass(frozen=True)
class ServiceStatus:
    """One service that was started and not stopped."""

    name: str
    pid: int
    where: str  # its address, or the work pool
    since: datetime
    state: str  # "healthy", or what is wrong

    @property
    def healthy(self) -> bool:
        return self.state == "healthy"


def status(settings: ServiceSettings) -> list[ServiceStatus]:
    """Look at every service that was started, in that order; empty if none was."""
    folder = ServiceFolder(settings.layout.services)
    settings = with_ports_in_use(settings, folder)
    return [_status(one, settings, folder) for one in folder.records().values()]


def _status(one: Started, settings: ServiceSettings, folder: ServiceFolder) -> ServiceStatus:
    where = f"http://{HOST}:{one.port}" if one.port else f"work pool {WORK_POOL}"
    if not one.is_alive(folder.path):
        state = f"has ended; see {folder.log(one.name)}"
    elif works(one, settings, heard_since=datetime.now(UTC) - _SILENCE):
        state = "healthy"
    else:
        state = f"does not answer; see {folder.log(one.name)}"
    return ServiceStatus(one.name, one.pid, where, one.started, state)
