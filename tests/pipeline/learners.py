"""Every learner of the project, with inputs for a step."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from models.encoders.options import RawPatchOptions
from models.encoders.raw_patches import RawPatchEncoder
from models.heads.linear import LinearHeads
from models.heads.segmenter import UperNetSegmenter
from models.heads.segmenter_options import SegmenterOptions
from models.heads.token_classifier import TokenMLP, TokenViT
from models.objectives import OBJECTIVES, build_objective
from models.vit.backbones import build_backbone
from models.vit.classifier import build_classifier
from models.vit.options import BackboneOptions
from models.vqkd.learner import VQKDLearner
from models.vqkd.options import VQKDCodebookOptions, VQKDNetworkOptions
from pipeline.data.labelled_images import seeded
from pipeline.stages.evaluate.evaluation_options import FineTuneOptions
from pipeline.stages.evaluate.fine_tune import FineTuning
from pipeline.stages.evaluate.frozen_features import HeadTraining
from pipeline.stages.evaluate.linear_probe import LinearProbing
from pipeline.stages.evaluate.segmentation import Segmentation
from pipeline.stages.evaluate.tokens_as_input import TokenClassification
from pipeline.training.token_prediction import TokenPrediction, pretraining_square

BACKBONE = BackboneOptions(name="vit_demo", image_size=64, drop_path_rate=0.5)

IMAGES, CLASSES, VOCABULARY, PATCHES = 5, 4, 32, 16

OBJECTIVE_OPTIONS = {
    "mim": {"masked": 6},
    "pim": {"cutting_point": 5},
    "mapet": {"cutting_point": 5},
    "beit": {"masked": 6, "min_block": 2},
    "cae": {"masked": 8, "min_block": 2},
}

Learner = tuple[nn.Module, tuple[Tensor, ...]]  # and its inputs


def draw() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def pixels() -> Tensor:
    return torch.randint(0, 256, (IMAGES, 3, 64, 64), dtype=torch.uint8, generator=draw())


def labels() -> Tensor:
    return torch.randint(CLASSES, (IMAGES,), generator=draw())


def tokens() -> Tensor:
    return torch.randint(VOCABULARY, (IMAGES, PATCHES), generator=draw())


SEEDS = torch.arange(IMAGES) + 7


def token_prediction(objective: str) -> Learner:
    options = OBJECTIVES[objective].options_class.model_validate(OBJECTIVE_OPTIONS[objective])
    network = build_objective(objective, build_backbone(BACKBONE, seed=1), VOCABULARY, options, seed=1)
    return TokenPrediction(network, pretraining_square(64), jitter=0.4), (pixels(), tokens().int(), SEEDS)


def fine_tuning(*, mixed: bool) -> Learner:
    model = build_classifier(BACKBONE, CLASSES, weights=None, seed=1)
    shares = torch.rand(IMAGES, CLASSES, dtype=torch.float64, generator=draw()).softmax(1)
    return FineTuning(model, FineTuneOptions()).double(), (pixels(), shares if mixed else labels(), SEEDS)


def linear_heads(blocks: tuple[int, ...]) -> LinearHeads:
    return LinearHeads(64, CLASSES, blocks=blocks, learning_rates=(1e-3, 1e-2), given_rate=1e-3, seed=1)


def linear_probe() -> Learner:
    learner = LinearProbing(build_backbone(BACKBONE, seed=1), linear_heads((1, 3)))
    return learner.double(), (pixels(), labels(), SEEDS)


def frozen_heads() -> Learner:
    features = torch.randn(IMAGES, 2, 64, dtype=torch.float64, generator=draw())
    return HeadTraining(linear_heads((3,))).double(), (features, labels())


def token_classifier(name: str) -> Learner:
    with seeded(1):
        network = {
            "mlp": lambda: TokenMLP(VOCABULARY, CLASSES, width=24),
            "vit": lambda: TokenViT(VOCABULARY, CLASSES, patches=PATCHES, width=24, depth=2, heads=2),
        }[name]()
    return TokenClassification(network).double(), (tokens(), labels())


def segmentation() -> Learner:
    """Build a learner whose BatchNorm, which is over what is computed at once, stays as it is."""
    options = SegmenterOptions(image_size=64, blocks=(0, 1, 2, 3), channels=16, auxiliary_channels=16)
    network = UperNetSegmenter(build_backbone(BACKBONE, seed=1), CLASSES, options, seed=1)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()
            part.train = lambda mode=True, part=part: part  # type: ignore[method-assign]
    maps = torch.randint(CLASSES, (IMAGES, 64, 64), generator=draw())
    for image in range(IMAGES):
        maps[image, : 15 * image] = 255  # images with less and less that has a class
    sizes = torch.tensor([(64, 64), (64, 40), (30, 64), (64, 64), (10, 20)])
    return Segmentation(network, layer_decay=0.75).double(), (pixels(), maps.to(torch.uint8), SEEDS, sizes)


def vqkd() -> Learner:
    teacher = RawPatchEncoder(RawPatchOptions(image_size=64, patch_size=16))
    options = VQKDNetworkOptions(image_size=64, width=64, depth=1, decoder_depth=1, vocabulary=VOCABULARY, code_width=8)
    return VQKDLearner(options, VQKDCodebookOptions(), teacher, seed=1), (pixels(), SEEDS)


LEARNERS: Mapping[str, Callable[[], Learner]] = {
    **{name: partial(token_prediction, name) for name in OBJECTIVES},
    "fine_tune": partial(fine_tuning, mixed=False),
    "fine_tune, mixed": partial(fine_tuning, mixed=True),
    "linear_probe": linear_probe,
    "frozen_features": frozen_heads,
    "tokens_as_input": partial(token_classifier, "mlp"),
    "tokens_as_input_vit": partial(token_classifier, "vit"),
    "segmentation": segmentation,
    "fit_vqkd": vqkd,
}
