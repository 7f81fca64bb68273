"""The base of every options class: strict, immutable, self-describing."""

import os
from collections.abc import Mapping
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Entry = TypeVar("Entry")

DecayRate = Annotated[float, Field(ge=0, lt=1)]
"""Of a running mean: Adam's betas."""

PathText = Annotated[str, AfterValidator(os.path.expanduser)]
"""A path, or what may be one: a leading ~ is the home directory, as a shell has it only at the start of a word."""

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""Of random numbers: what numpy, torch and scikit-learn all take."""

FLOAT32 = 1e38
"""About the largest number of 32 bits; a factor above it would be infinite where it is used."""


class Options(BaseModel):
    """One component's choices.

    Frozen (a run's choices never change under it), closed (a misspelt field is an error), and the docstring below
    each field is its help text, in the CLI and in Prefect's form. Every number has bounds, the widest that a run could
    mean: a slip of the pen is refused where it is made, and not hours later.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def entries_of(sections: type[Options], kind: type[Entry]) -> Mapping[str, Entry]:
    """Collect what sections are annotated with of that kind, by the section's name, in their order."""
    fields = sections.model_fields.items()
    return {name: entry for name, field in fields for entry in field.metadata if isinstance(entry, kind)}
