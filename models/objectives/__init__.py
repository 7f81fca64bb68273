"""Pre-training objectives by name: adding one is one file and one entry here."""

from timm.models.vision_transformer import VisionTransformer

from models.objectives.base import Objective
from models.objectives.beit import BEiT
from models.objectives.cae import CAE
from models.objectives.mapet import MaPeT
from models.objectives.mim import MIM
from models.objectives.pim import PIM
from models.options import Options

OBJECTIVES: dict[str, type[Objective]] = {
    "mim": MIM,
    "pim": PIM,
    "mapet": MaPeT,
    "beit": BEiT,
    "cae": CAE,
}


def build_objective(
    name: str, backbone: VisionTransformer, vocabulary: int, options: Options, *, seed: int
) -> Objective:
    """The objective called `name`; `options` are of its `options_class`. Raises ModelError when they do not fit."""
    return OBJECTIVES[name](backbone, vocabulary, options, seed=seed)  # type: ignore[call-arg, arg-type]
