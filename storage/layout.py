"""Where things are under the data root. The only file that joins these paths."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Layout:
    """`<data root>/<stage>/<fingerprint>/` for artifacts; everything else beside them."""

    root: Path

    def artifact(self, stage: str, fingerprint: str) -> Path:
        return self.root / stage / fingerprint

    def partial(self, stage: str, fingerprint: str) -> Path:
        """The unpublished sibling in which a stage works; it survives a kill and is resumed."""
        return self.root / stage / f"{fingerprint}.partial"

    def stage(self, stage: str) -> Path:
        return self.root / stage

    def lock(self, stage: str, fingerprint: str) -> Path:
        return self.root / "locks" / f"{stage}-{fingerprint}.lock"

    @property
    def tracking_lock(self) -> Path:
        return self.root / "locks" / "mlflow.lock"

    @property
    def tracking_database(self) -> Path:
        return self.root / "mlflow" / "mlflow.db"

    @property
    def tracking_artifacts(self) -> Path:
        return self.root / "mlflow" / "artifacts"

    @property
    def decoded_tokens(self) -> Path:
        """Memory-mapped copies of token stores, one per store and node."""
        return self.root / "cache" / "tokens"
