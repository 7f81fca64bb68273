"""The configuration and the settings that the words of a command ask for."""

import logging

from pipeline.commands.words import Words
from pipeline.configuration.config import KClipBuildConfig
from pipeline.configuration.overrides import apply_overrides
from pipeline.configuration.presets import PRESETS, preset
from pipeline.engine.settings import Settings, load_settings

logger = logging.getLogger("mapet.stages")


def configure(words: Words) -> tuple[KClipBuildConfig, Settings]:
    """Read what a flow is to do, and where; says which of the options change nothing."""
    of_machine = [word.removeprefix("settings.") for word in words.options if word.startswith("settings.")]
    of_config = [word for word in words.options if not word.startswith("settings.")]
    config = apply_overrides(preset(words.flow, words.preset), of_config)
    settings = apply_overrides(load_settings(), of_machine)
    if of_config:
        from pipeline.chains.unused_options import notes_on_unused

        for note in notes_on_unused(config, [word.partition("=")[0] for word in of_config]):
            logger.warning(note)
    return config, settings


def say_default(words: Words) -> None:
    """Say which preset is meant where none is named."""
    if words.is_default:
        others = ", ".join(PRESETS[words.flow])
        logger.info("no preset is named, so this is `mapet %s %s`; presets: %s", words.flow, words.preset, others)
