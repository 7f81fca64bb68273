"""Register every preset as a deployment, and leave what people changed there: `python -m flows.register`.

`prefect deploy --all` sets every deployment back to its preset: edited parameters, tags and descriptions, schedules
that were added. Here a deployment that is new gets everything, its schedule too. Of one that is there already,
schedules, pauses and limits are not touched, and a value that somebody edited stays. Which these are, the deployment's
`version` tells: it holds a digest of each value as it was registered last.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from typing import Any

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL
from prefect.utilities.callables import parameter_schema

from flows.deployments import deployments
from flows.gpu_places import provide_gpu_limit
from flows.services.settings import gpus_of_workers, load_service_settings
from pipeline.engine.errors import PipelineError
from storage.files import canonical_json, sha256_text

_EDITABLE = ("parameters", "description", "tags", "job_variables")
_MARK = "preset"


def register(client: SyncPrefectClient) -> list[str]:
    """Register a deployment for every preset. Returns what there is to say, a line each.

    Raises:
        PipelineError: the server does not take one, such as when there is no work pool yet.
    """
    content = deployments()
    kept, refused = [], []
    for entry in content["deployments"]:
        name = f"{entry['tags'][0]}/{entry['name']}"
        try:
            there = client.read_deployment_by_name(name)
        except ObjectNotFound:
            _create(client, entry, content["pull"])
            continue
        edited = [
            field for field, digest in _registered(there).items() if digest != value_digest(getattr(there, field))
        ]
        kept += [f"{name} ({', '.join(edited)})"] if edited else []
        try:
            _update(client, there, entry, content["pull"], edited)
        except PipelineError as error:
            if "parameters" not in edited:
                raise
            refused.append(f"{name} stays as it is, delete it in Prefect to have its preset: {error}")
    said = [f"deployments: {len(content['deployments'])}"]
    return [*said, *([f"kept as edited in Prefect: {'; '.join(kept)}"] if kept else []), *refused]


def _create(client: SyncPrefectClient, entry: Mapping[str, Any], pull: Sequence[Any]) -> None:
    schedules = [
        {"slug": one["slug"], "schedule": {"cron": one["cron"], "timezone": one["timezone"]}}
        for one in entry.get("schedules", ())
    ]
    body = {
        "name": entry["name"],
        "flow_id": str(client.create_flow_from_name(entry["tags"][0])),
        "work_pool_name": entry["work_pool"]["name"],
        "enforce_parameter_schema": True,
        "schedules": schedules,
        "version": _version({field: value_digest(value) for field, value in _editable(entry).items()}),
        **_editable(entry),
        **_fixed(entry, pull),
    }
    _send(client, "POST", "/deployments/", body)


def _update(
    client: SyncPrefectClient,
    there: DeploymentResponse,
    entry: Mapping[str, Any],
    pull: Sequence[Any],
    edited: Sequence[str],
) -> None:
    ours = {field: value for field, value in _editable(entry).items() if field not in edited}
    digests = {**_registered(there), **{field: value_digest(value) for field, value in ours.items()}}
    _send(client, "PATCH", f"/deployments/{there.id}", {"version": _version(digests), **ours, **_fixed(entry, pull)})


def _fixed(entry: Mapping[str, Any], pull: Sequence[Any]) -> dict[str, Any]:
    """Return what belongs to the code and is nobody's choice."""
    return {
        "entrypoint": entry["entrypoint"],
        "pull_steps": list(pull),
        "parameter_openapi_schema": _schema(entry["entrypoint"]),
    }


@cache  # there are few flows, and many deployments of each
def _schema(entrypoint: str) -> dict[str, Any]:
    module, _, function = entrypoint.rpartition(".")
    schema = parameter_schema(getattr(import_module(module), function)).model_dump(exclude_unset=True)
    # A parameter that does not exist is refused when a run is asked for, not with a traceback when it starts.
    return {**schema, "additionalProperties": False}


def _editable(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return what Prefect's page "Edit" can change of a deployment."""
    texts = {field: entry[field] for field in ("parameters", "description", "tags")}
    return {**texts, "job_variables": entry["work_pool"]["job_variables"]}


def _registered(there: DeploymentResponse) -> dict[str, str]:
    """Read the digest of each editable value as it was registered last; empty if something else registered it."""
    mark, *digests = (there.version or "").split("-")
    return dict(zip(_EDITABLE, digests, strict=False)) if mark == _MARK else {}


def _version(digests: Mapping[str, str]) -> str:
    return "-".join([_MARK, *(digests[field] for field in _EDITABLE)])


def value_digest(value: Any) -> str:
    return sha256_text(canonical_json(value))[:8]


def _send(client: SyncPrefectClient, method: Any, path: Any, body: Mapping[str, Any]) -> None:
    try:
        client.request(method, path, json=dict(body))
    except PrefectHTTPStatusError as error:
        raise PipelineError(f"Prefect does not take a deployment: {error.response.text[:300]}") from None


def main() -> int:
    try:
        gpus = gpus_of_workers(load_service_settings())
        with get_client(sync_client=True) as client:
            lines = register(client)
            lines += filter(None, [provide_gpu_limit(client, gpus)])
    except PipelineError as error:
        return _complain(str(error))
    except httpx.HTTPError as error:
        return _complain(f"Prefect at {PREFECT_API_URL.value()}: {str(error).partition(chr(10))[0]}")
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


def _complain(message: str) -> int:
    sys.stderr.write(f"mapet: error: {message}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
