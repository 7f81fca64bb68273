"""Whether a stage's artifact is there, as far as that can be said at once: without loading a network."""

from pipeline.data.inputs import Network
from pipeline.encoding.network_facts import are_remembered
from pipeline.engine.errors import USER_ERRORS
from pipeline.engine.stage import Made, Stage
from storage.artifact import read_artifact


def is_recipe_known(stage: Stage, made: Made) -> bool:
    """Return whether no network has to be loaded to say what the stage would make."""
    if any(source not in made for source in stage.takes):
        return True
    networks = (value for value in vars(stage).values() if isinstance(value, Network))
    try:
        return all(are_remembered(network.options_in(made), made.settings.layout) for network in networks)
    except USER_ERRORS:
        return False


def is_published(stage: Stage, made: Made) -> bool:
    """Return whether the artifact is on this disk, its bytes unread; False also where only long work would tell."""
    try:
        if not is_recipe_known(stage, made) or stage.preparation(made):
            return False
        recipe = made.recipe(stage)
        read_artifact(made.settings.layout.artifact(recipe.stage, recipe.fingerprint))
        return True
    except (*USER_ERRORS, OSError):  # whoever makes it says what is wrong
        return False
    finally:
        made.forget(stage)
