"""The colour of an objective, which its own file says, in MLflow's plots and in the report's."""

from models.objectives import OBJECTIVES

_OTHER = ("#b0418b", "#e58bc6")  # on a light page and on a dark one: what no objective has trained


def objective_colour(objective: str, *, dark: bool = False) -> str:
    """Return `#rrggbb` for an objective by its name, such as `mapet`."""
    known = OBJECTIVES.get(objective)
    return (known.load().colours if known else _OTHER)[dark]


def colour_by_title(title: str, *, dark: bool = False) -> str:
    """Return `#rrggbb` for an objective by its title, such as `MaPeT`."""
    named = {known.load().title: name for name, known in OBJECTIVES.items()}
    return objective_colour(named.get(title, ""), dark=dark)
