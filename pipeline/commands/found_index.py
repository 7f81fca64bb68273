"""The image index of a token store that a user names."""

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
    roots = dict.fromkeys((tokens.path.absolute().parent.parent, data_root.absolute()))
    for root in roots:
        for indexed in list_artifacts(Layout(root), IndexImages.NAME):
            if indexed.digest == digest:
                require_intact(indexed, remedy="`mapet kclip-build` on the same images rebuilds it")
                return indexed
    raise PipelineError(
        f"{tokens.path}: its image index {digest[:12]}, which says whose tokens these are, is not in "
        f"{' or '.join(str(root / IndexImages.NAME) for root in roots)}; set MAPET_DATA_ROOT to the data root that has "
        "it, or run `mapet kclip-build` on the same images, which makes it again"
    )
