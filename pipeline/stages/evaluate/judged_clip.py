"""What defines a CLIP that is judged: both of its towers, where encoders have the one that sees images."""

from typing import Any

from models.clip.options import ClipOptions
from pipeline.encoding.network_facts import remembered
from storage.layout import Layout


def zero_shot_definition(clip: ClipOptions, layout: Layout) -> dict[str, Any]:
    """Return what of the CLIP defines a result, for the recipe of an evaluation. Raises ModelError as
    `load_whole_clip`."""
    return {"precision": clip.precision, **remembered("both towers", clip, layout, lambda: _definition(clip))}


def _definition(clip: ClipOptions) -> dict[str, Any]:
    from models.clip.encoder import load_whole_clip  # torch, for what is new here

    whole = load_whole_clip(clip)
    seen = whole.preprocessing
    return {
        "weights": whole.digest,
        "image_size": seen.image_size,
        "mean": list(seen.mean),
        "std": list(seen.std),
        "interpolation": seen.interpolation,
    }
