"""Pre-training objectives by name, in the order in which they are shown.

Adding one is its file (what it computes, and the words for whoever shows it), its choices in `options.py`, and its
entry here. Importing this imports no torch: only `load()` does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from models.objectives.options import BEiTOptions, CAEOptions, MaPeTOptions, MIMOptions, PIMOptions
from models.options import Options

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

    from models.objectives.base import Objective


@dataclass(frozen=True)
class KnownObjective:
    """What is known of an objective before its class is imported.

    Attributes:
        options_class: its choices.
        load: imports its class.
        revision: of what the class computes from the same options and seed; a change of it is another pre-training.
    """

    options_class: type[Options]
    load: "Callable[[], type[Objective]]"
    revision: int = 1


def _mim() -> "type[Objective]":
    from models.objectives.mim import MIM

    return MIM


def _pim() -> "type[Objective]":
    from models.objectives.pim import PIM

    return PIM


def _mapet() -> "type[Objective]":
    from models.objectives.mapet import MaPeT

    return MaPeT


def _beit() -> "type[Objective]":
    from models.objectives.beit import BEiT

    return BEiT


def _cae() -> "type[Objective]":
    from models.objectives.cae import CAE

    return CAE


OBJECTIVES = {
    "mim": KnownObjective(MIMOptions, _mim),
    "pim": KnownObjective(PIMOptions, _pim),
    "mapet": KnownObjective(MaPeTOptions, _mapet),
    "beit": KnownObjective(BEiTOptions, _beit),
    "cae": KnownObjective(CAEOptions, _cae, revision=2),
}


def build_objective(
    name: str, backbone: "VisionTransformer", vocabulary: int, options: Options, *, seed: int
) -> "Objective":
    """Build the objective called `name`; `options` are of its `options_class`.

    Raises:
        ModelError: options and backbone do not fit.
    """
    return OBJECTIVES[name].load()(backbone, vocabulary, options, seed=seed)  # type: ignore[call-arg, arg-type]
