"""One colour per objective, in MLflow's plots and in the report's."""

# On a light page, and the same hue lighter for a dark one.
_COLOURS = {
    "mim": ("#7a7f87", "#a4abb5"),
    "beit": ("#8a63d2", "#b197ea"),
    "cae": ("#2a9d8f", "#5cc9bb"),
    "pim": ("#2f6fbf", "#74aef2"),
    "mapet": ("#c2571a", "#f0955a"),
}
_OTHER = ("#b0418b", "#e58bc6")  # an objective that is not in the table yet


def objective_colour(objective: str, *, dark: bool = False) -> str:
    """`#rrggbb`."""
    return _COLOURS.get(objective, _OTHER)[dark]
