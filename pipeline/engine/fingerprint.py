"""Which options define a result. Everything else about a run (paths, policies, machine) stays out of fingerprints."""

from collections.abc import Mapping
from typing import Any

from pydantic.config import JsonDict
from pydantic.fields import FieldInfo

from models.options import Options
from storage.artifact import Recipe

SETTING: JsonDict = {"defines_result": False}
"""`Field(json_schema_extra=SETTING)` marks an option that cannot change what a stage writes, such as a path."""


def defining_options(options: Options) -> dict[str, Any]:
    """Return the options that define a result, as plain JSON values."""
    settings = {name for name, field in type(options).model_fields.items() if _is_setting(field)}
    return options.model_dump(mode="json", exclude=settings)


def recipe(stage: str, version: int, options: Options | Mapping[str, Any], **input_digests: str) -> Recipe:
    """Return the recipe of `stage`: bump `version` when a change of code changes its result."""
    chosen = defining_options(options) if isinstance(options, Options) else dict(options)
    return Recipe(stage, version, chosen, input_digests)


def _is_setting(field: FieldInfo) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, dict) and extra.get("defines_result") is False
