"""The base of every options class: strict, immutable, self-describing."""

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """One component's choices.

    Frozen (a run's choices never change under it), closed (a misspelt field is an error), and the docstring below
    each field is its help text, in the CLI and in Prefect's form.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
