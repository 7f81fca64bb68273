"""What a token store that a user names was made from: its image index, its codebook."""

from pathlib import Path

from pipeline.engine.errors import PipelineError
from pipeline.stages.index_images import IndexImages
from storage.artifact import Artifact, list_artifacts, require_intact
from storage.layout import Layout


def find_index(tokens: Artifact, digest: str, data_root: Path) -> Artifact:
    """Find the index of that digest in the data root that the tokens lie in, or in `data_root`.

    Raises:
        PipelineError: it is in neither.
        ArtifactDamaged: it is not what was published.
    """
    if indexed := find_input(tokens, IndexImages.NAME, digest, data_root):
        return indexed
    roots = _roots(tokens, data_root)
    raise PipelineError(
        f"{tokens.path}: its image index {digest[:12]}, which says whose tokens these are, is not in "
        f"{' or '.join(str(root / IndexImages.NAME) for root in roots)}; set MAPET_DATA_ROOT to the data root that has "
        "it, or run `mapet kclip-build` on the same images, which makes it again"
    )


def find_input(tokens: Artifact, stage: str, digest: str, data_root: Path) -> Artifact | None:
    """Find the artifact of a stage by its digest, in the same places. Raises ArtifactDamaged as `find_index`."""
    for root in _roots(tokens, data_root):
        for made in list_artifacts(Layout(root), stage):
            if made.digest == digest:
                require_intact(made, remedy="`mapet kclip-build` on the same images rebuilds it")
                return made
    return None


def _roots(tokens: Artifact, data_root: Path) -> tuple[Path, ...]:
    return tuple(dict.fromkeys((tokens.path.absolute().parent.parent, data_root.absolute())))
