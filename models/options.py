"""The base of every options class: strict, immutable, self-describing."""

import os
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

DecayRate = Annotated[float, Field(ge=0, lt=1)]
"""Of a running mean: Adam's betas."""

PathText = Annotated[str, AfterValidator(os.path.expanduser)]
"""A path, or what may be one: a leading ~ is the home directory, as a shell has it only at the start of a word."""


class Options(BaseModel):
    """One component's choices.

    Frozen (a run's choices never change under it), closed (a misspelt field is an error), and the docstring below
    each field is its help text, in the CLI and in Prefect's form.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
