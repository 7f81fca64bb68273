"""Pre-training objectives by name: adding one is one file and one entry here."""

from models.objectives.base import Objective
from models.objectives.beit import BEiT
from models.objectives.cae import CAE
from models.objectives.mapet import MaPeT
from models.objectives.mim import MIM
from models.objectives.pim import PIM

OBJECTIVES: dict[str, type[Objective]] = {
    "mim": MIM,
    "pim": PIM,
    "mapet": MaPeT,
    "beit": BEiT,
    "cae": CAE,
}
