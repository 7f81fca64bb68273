"""Options that somebody sets and that nothing of the run looks at: `clip.*` with the tokens of a VQ-KD, say."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from models.tokenizers.registry import SECTIONS, TOKENIZERS
from pipeline.chains.grid import SCRATCH, pretrained_cells, scratch_cells
from pipeline.chains.tokens import DEMO, clips_of
from pipeline.configuration.config import EvaluateConfig, KClipBuildConfig, PretrainConfig, ReproduceConfig
from pipeline.configuration.variations import with_tokenizer
from pipeline.stages.evaluate.protocols import KEPT_BY, PROTOCOLS
from pipeline.training.pretraining_options import PretrainOptions
from pipeline.training.vqkd_options import FIT

_CLUSTERED = tuple(name for name, known in TOKENIZERS.items() if known.clusters)
# A section, and the tokenizers that look at it.
_TOKENIZERS: Mapping[str, tuple[str, ...]] = {
    **{section: (name,) for name, section in SECTIONS.items()},
    "features": _CLUSTERED,
    "codebook": _CLUSTERED,
    "fit_vqkd": ("vqkd",),
}
# All but the tokens that `pretrain` may name, which are those of every evaluation.
_CHOSEN = (f"pretrain.{name}" for name in PretrainOptions.model_fields if name != "tokens")
_OF_PRETRAINING = ("objectives", "training", *_CHOSEN)
Unused = Mapping[str, str]  # a section or an option -> why nothing looks at it


def notes_on_unused(config: KClipBuildConfig, names: Sequence[str]) -> Iterator[str]:
    """Yield a sentence for each of these options that changes nothing of a run with this configuration."""
    parts = list(_parts(config))
    for name in names:
        reasons = [_reason(name, unused) or _overruled(name, part, config) for part, unused in parts]
        if all(reasons):
            yield f"{name} is not used: {reasons[0]}"


def _parts(config: KClipBuildConfig) -> Iterator[tuple[KClipBuildConfig, Unused]]:
    """Yield the configurations of what runs, each with what it does not look at: a grid has several."""
    if not isinstance(config, ReproduceConfig):
        yield config, _unused(config)
        return
    grid = config.compared
    overruled = {"tokenizer": "grid.tokenizers says whose tokens there are"}
    overruled |= {"grid.objectives": "full=true takes all objectives"} if config.full else {}
    for tokenizer in dict.fromkeys((*grid.tokenizers, *grid.tokens_only)):
        chosen, why = with_tokenizer(config, tokenizer), "the grid has no such training"
        of_backbones = [name for name, known in PROTOCOLS.items() if known.judges == "backbone"]
        yield chosen, _unused(chosen) | dict.fromkeys((*_OF_PRETRAINING, "backbone", *of_backbones), why) | overruled
    for cell in (*pretrained_cells(grid), *scratch_cells(grid)):
        configured = cell.configure(config)
        from_scratch = (*_OF_PRETRAINING, "demo_clip", *_TOKENIZERS) if cell.objective == SCRATCH else ()
        yield configured, _unused(configured) | dict.fromkeys(from_scratch, "nothing is pre-trained") | overruled


def _reason(name: str, unused: Unused) -> str:
    """Return why it is not looked at; "" if it is."""
    return next((why for place, why in unused.items() if name == place or name.startswith(f"{place}.")), "")


def _overruled(name: str, part: KClipBuildConfig, config: KClipBuildConfig) -> str:
    return "" if _value(part, name) == _value(config, name) else "the grid gives every training its own"


def _value(config: KClipBuildConfig, name: str) -> Any:
    value: Any = config
    for option in name.split("."):
        value = getattr(value, option)
    return value


def _unused(config: KClipBuildConfig) -> dict[str, str]:
    unused = _unused_of_tokens(config)
    if isinstance(config, PretrainConfig):
        objective = config.pretrain.objective
        others = (name for name in type(config.objectives).model_fields if name != objective)
        unused |= {f"objectives.{name}": f"the objective is {objective}" for name in others}
    if isinstance(config, EvaluateConfig):
        chosen = config.evaluate.protocols
        unused |= {name: "evaluate.protocols does not name it" for name in PROTOCOLS if name not in chosen}
        if KEPT_BY not in chosen:
            unused["evaluate.keep_weights"] = f"evaluate.protocols does not name {KEPT_BY}"
        if config.images.kind != "demo" or config.segmentation.path or "segmentation" not in chosen:
            unused["demo_segmentation"] = "no demo pictures are segmented"
    return unused


def _unused_of_tokens(config: KClipBuildConfig) -> dict[str, str]:
    tokenizer, kind = config.tokenizer, config.images.kind
    why = f"the tokenizer is {tokenizer}"
    unused = {section: why for section, tokenizers in _TOKENIZERS.items() if tokenizer not in tokenizers}
    if tokenizer == "kmeans" and config.encoder.kind != "timm":
        unused.pop(config.encoder.kind)
        others = (f"encoder.{name}" for name in type(config.encoder).model_fields if name != "kind")
        unused |= dict.fromkeys(others, f"encoder.kind is {config.encoder.kind}")
    if tokenizer == "vqkd" and config.vqkd.checkpoint == FIT:
        unused["vqkd.image_size"] = "with vqkd.checkpoint=fit it is fit_vqkd.network.image_size"
    elif tokenizer == "vqkd":
        unused["fit_vqkd"] = "vqkd.checkpoint names one that is trained"
    if kind == "demo":
        unused["images.path"] = "with images.kind=demo the images are drawn; images.kind=folder reads others"
    else:
        unused["demo_images"] = f"with images.kind={kind} none are drawn"
    if not any(clip.model == DEMO for clip in clips_of(config)):
        unused["demo_clip"] = "no CLIP is trained here (clip.model=demo)"
    if isinstance(config, PretrainConfig) and config.pretrain.tokens:
        unused |= dict.fromkeys(("decoding", *_TOKENIZERS), "pretrain.tokens names the tokens")
    return unused
