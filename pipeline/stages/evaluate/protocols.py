"""The evaluation protocols by name, and the choice among them."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from models.options import Options, entries_of
from pipeline.stages.evaluate.protocol_sections import KnownProtocol, ProtocolSections

PROTOCOLS: Mapping[str, KnownProtocol] = entries_of(ProtocolSections, KnownProtocol)

# Whose classifier `keep_weights` keeps: others train heads on features that they are not saved with, or no classifier.
KEPT_BY = "fine_tune"

ProtocolName = Literal[*PROTOCOLS]  # type: ignore[valid-type]


class EvaluateOptions(Options):
    """Which protocols are run."""

    protocols: tuple[ProtocolName, ...] = Field(
        default=("frozen_features", "linear_probe", "fine_tune", "tokens_as_input"), min_length=1
    )
    """Names of protocols; each has a section of options of that name."""

    keep_weights: bool = False
    """Keep the classifier that `fine_tune` ends with, for `mapet export`. An evaluation that was made without is made
    again: the weights are gone."""
