"""`mapet show`: a preset's configuration with the help of every option."""

import argparse
import json

from models.options import Options
from pipeline.commands.configured import configure
from pipeline.commands.words import read_words
from pipeline.configuration.presets import PRESETS


def show(options: argparse.Namespace) -> int:
    """Print every option of a preset with its value and its help."""
    words = read_words("show", options.words)
    config, _ = configure(words)
    presets = PRESETS[words.flow]
    print(f"# {words.flow} {words.preset}; presets: {', '.join(presets)}")
    print(f"# {(presets[words.preset].__doc__ or '').strip()}")
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if hasattr(value, "model_fields"):
            _show_section(name, field.description, value)
        else:
            _show_option(name, value, field.description)
    return 0


def _show_section(path: str, text: str | None, options: Options) -> None:
    print(f"\n# {' '.join((text or '').split())}")
    for name, field in type(options).model_fields.items():
        value = getattr(options, name)
        if hasattr(value, "model_fields"):
            _show_section(f"{path}.{name}", field.description, value)
        else:
            _show_option(f"{path}.{name}", options.model_dump(mode="json")[name], field.description)


def _show_option(path: str, value: object, text: str | None) -> None:
    print(f"{path}={json.dumps(value)}\n    {' '.join((text or '').split())}")
