"""A small run of every stage: images, CLIP, k-CLIP and VQ-KD tokens, a pre-training, evaluations of all three, report.

Everything is derived from files that ship with scikit-learn, so a chain needs nothing but a data root.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.chains.graph import FlowResult
from pipeline.configuration.config import ReproduceConfig
from pipeline.configuration.overrides import apply_overrides
from pipeline.configuration.presets import preset
from pipeline.engine.settings import Settings
from pipeline.engine.workspace import Workspace
from storage.artifact import RECORD, Artifact, damage, list_artifacts
from storage.layout import Layout
from tests.stages import reproduce

STAGES = (
    "make_demo_images",
    "index_images",
    "train_demo_clip",
    "extract_features",
    "fit_codebook",
    "tokenize_images",
    "pretrain",
    "evaluate",
    "fit_vqkd",
    "report",
)  # in the order of the chain, which tokenizes and evaluates again after fit_vqkd
Expected = Mapping[tuple[str, str], str]  # (stage, fingerprint) -> digest, as an undisturbed run made them
TELLS_TIMES = "report"  # it says when its stages were built: the only artifact whose bytes differ from run to run
SMALL_BUILD = (
    "images.images_per_shard=8",
    "demo_images.limit=30",
    "demo_images.renderings=2",
    "demo_clip.epochs=1",
    "demo_clip.width=4",
    "demo_clip.batch_size=20",
    "features.sample_fraction=1.0",
    "codebook.vocabulary=16",
    "codebook.iterations=6",
)  # of every flow
SMALL_TRAINING = (
    "training.epochs=2",
    "training.warmup_epochs=1",
    "training.batch_size=8",
    "training.report_steps=1",
)
SMALL_CHAIN = (
    *SMALL_BUILD,
    "fit_vqkd.network.width=64",
    "fit_vqkd.network.depth=1",
    "fit_vqkd.network.decoder_depth=1",
    "fit_vqkd.network.vocabulary=8",
    "fit_vqkd.training.epochs=2",
    "fit_vqkd.training.batch_size=8",
    "fit_vqkd.training.warmup_epochs=0",
    *SMALL_TRAINING,
    'grid.objectives=["mapet"]',
    'grid.tokens_only=["vqkd"]',
    "grid.scratch=false",
    'evaluate.protocols=["zero_shot","frozen_features","fine_tune"]',
    *(
        f"{protocol}.training.{option}"
        for protocol in ("frozen_features", "fine_tune")
        for option in ("epochs=2", "batch_size=8", "warmup_epochs=0", "report_steps=1")
    ),
    "frozen_features.neighbours=3",
)


def small_chain(*overrides: str) -> ReproduceConfig:
    config = preset("reproduce", "demo")
    assert isinstance(config, ReproduceConfig)
    return apply_overrides(config, [*SMALL_CHAIN, *overrides])


def run_chain(root: Path, *, overrides: Sequence[str] = (), tracked: bool = False, workers: int = 1) -> FlowResult:
    """Return what is missing of the chain. `tracked`: in a real MLflow database below the root, as the command line
    does.

    Checkpoints come every few steps, so that a kill is likely to find one.
    """
    settings = Settings(data_root=root, device="cpu", workers=workers, batch_size=4, checkpoint_steps=3)
    config, workspace = small_chain(*overrides), Workspace(settings)
    if not tracked:
        return reproduce(config, workspace)
    with workspace.tracked("chain", config) as of_run:
        return reproduce(config, of_run)


def published(root: Path) -> list[Artifact]:
    """Return every artifact whose record can be read."""
    return [artifact for stage in STAGES for artifact in list_artifacts(Layout(root), stage)]


def expected_of(root: Path) -> Expected:
    """Return what an undisturbed run has published."""
    return {(made.stage, made.fingerprint): made.digest for made in published(root) if made.stage != TELLS_TIMES}


def wrong_results(root: Path, expected: Expected, *, whole: bool = False) -> list[str]:
    """Return a sentence per published artifact that is not what an undisturbed run publishes; every byte is read.

    `whole`: and one per artifact that is missing.
    """
    wrong, found = [], published(root)
    for artifact in found:
        wrong += damage(artifact)
        key = (artifact.stage, artifact.fingerprint)
        if artifact.stage != TELLS_TIMES and expected.get(key) != artifact.digest:
            wrong.append(f"{artifact.path}: digest {artifact.digest}, undisturbed {expected.get(key)}")
    readable = {artifact.path for artifact in found}
    folders = {path.parent for path in root.glob(f"*/*/{RECORD}") if path.parent.suffix != ".partial"}
    wrong += [f"{path}: published without a readable record" for path in sorted(folders - readable)]
    if whole:
        made = {(artifact.stage, artifact.fingerprint) for artifact in found}
        wrong += [f"{stage}/{name}: missing" for stage, name in expected.keys() - made]
        wrong += [] if any(artifact.stage == TELLS_TIMES for artifact in found) else [f"{TELLS_TIMES}: missing"]
    return wrong


def being_built(root: Path) -> str:
    """Return the stage that works now, or worked when it was stopped: that of the newest unfinished artifact."""
    partials = sorted(root.glob("*/*.partial"), key=lambda path: path.stat().st_mtime)
    return partials[-1].parent.name if partials else "between stages"
