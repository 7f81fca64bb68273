"""The base of every options class: strict, immutable, self-describing."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

DecayRate = Annotated[float, Field(ge=0, lt=1)]
"""Of a running mean: Adam's betas."""


class Options(BaseModel):
    """One component's choices.

    Frozen (a run's choices never change under it), closed (a misspelt field is an error), and the docstring below
    each field is its help text, in the CLI and in Prefect's form.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
