"""What the configuration of one flow hands on to that of the next, which does more."""

from typing import Any

from pipeline.configuration.config import KClipBuildConfig


def sections_of(config: KClipBuildConfig) -> dict[str, Any]:
    """Return its sections by name, as arguments of the next configuration."""
    return {name: getattr(config, name) for name in type(config).model_fields}
