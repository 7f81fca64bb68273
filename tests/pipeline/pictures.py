"""Indexed pictures, and artifacts that somebody made up about them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.kmeans.statistics import codebook_statistics
from pipeline.data.decoding_options import DecodingOptions
from pipeline.data.source_options import ImageSourceOptions
from pipeline.engine.settings import Settings
from pipeline.engine.workspace import StageResult, Workspace
from pipeline.stages.evaluate.scores import score, write_scores
from pipeline.training.history import History
from storage.artifact import Artifact, Built, Recipe, build_artifact
from storage.token_store import write_token_store
from tests.pipeline.pages import write_pictures
from tests.stages import index_images, report

# Rows: 6 cats and 6 dogs to train on, 2 and 2 to validate; 2 x 2 patches, of 5 tokens.
LABELS = np.repeat([0, 1, 0, 1], [6, 6, 2, 2])

TELLING = np.where(LABELS[:, None] == 0, [0, 1, 2, 2], [3, 4, 2, 2])  # half of the patches tell the class

HISTORY = [
    {"loss": 1.0, "cosine": 0.2, "used_share": 0.4, "perplexity": 1.5},
    {"loss": 0.5, "cosine": 0.6, "used_share": 0.8, "perplexity": 3.0},
    {"val_loss": 0.6, "val_cosine": 0.55},
]
FITTED = {
    "steps": 1300, "vocabulary": 5, "loss": 0.5, "cosine": 0.6, "used_share": 0.8, "perplexity": 3.0,
    "largest_share": 0.5, "train_images": 12, "val_images": 4, "bad_images": 0,
}  # fmt: skip
SAMPLED = {"images": 16, "bad_images": 0, "planned_vectors": 8, "sampled_vectors": 8, "width": 3}


@dataclass(frozen=True)
class Pictures:
    """Indexed images, and a workspace for what is made of them."""

    images: Artifact
    source: ImageSourceOptions
    workspace: Workspace

    def artifact(self, stage: str, options: Mapping[str, Any], fill: Any, **inputs: str) -> Artifact:
        recipe = Recipe(stage, 1, dict(options), {"images": self.images.digest, **inputs})
        return build_artifact(self.workspace.settings.layout, recipe, fill)[0]

    def tokens(self, kind: str, tokens: np.ndarray = TELLING, *, vocabulary: int = 5, **notes: str) -> Artifact:
        """Return a token store whose tokens somebody made up."""
        counts = np.bincount(tokens.reshape(-1), minlength=vocabulary)
        attributes = {
            "tokenizer": kind,
            "vocabulary": vocabulary,
            "grid": [2, 2],
            "image_index": self.images.digest,
            "encoder": {"image_size": 64, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"},
            "decoding": {"preset": "exact", "max_pixels": 1_000_000},
        }

        def fill(folder: Path) -> Built:
            parts = [(np.arange(len(tokens)), tokens.astype(np.uint16), np.zeros(len(tokens), np.uint8))]
            write_token_store(folder, parts, images=len(tokens), patches=4, attributes=attributes)
            np.save(folder / "counts.npy", counts)
            facts = {"images": len(tokens), "bad_images": 0, "vocabulary": vocabulary}
            return Built({**facts, **asdict(codebook_statistics(counts))}, notes)

        return self.artifact("tokenize_images", {"tokenizer": kind, "vocabulary": vocabulary}, fill)

    def fitted(self, history: Sequence[Mapping[str, float]] = HISTORY, **changed: float) -> Artifact:
        """Return a VQ-KD that was trained on the images, as its record and its curves tell."""

        def fill(folder: Path) -> Built:
            for number, values in enumerate(history, start=1):
                History(folder).append(100 * number, number / 2, values)
            return Built({**FITTED, **changed}, {"teacher": "ViT-B-16, openai", "seconds": 61.0})

        return self.artifact("fit_vqkd", {"network": {"width": 8}, "changed": changed}, fill)

    def judged(self, tokens: Artifact, correct: int, *, network: str = "mlp", seed: int = 0) -> Artifact:
        """Return an evaluation of tokens as input: so many of 100 images are right."""
        protocol = "tokens_as_input" if network == "mlp" else "tokens_as_input_vit"
        options = {"network": network, "seed": seed, "training": {"epochs": 1}}

        def fill(folder: Path) -> Built:
            right = np.arange(100) < correct
            write_scores(folder, [score("top1", right, "")], {"top1": right})
            return Built({"top1": float(correct), "val_images": 100, "what": protocol}, {})

        return self.artifact(
            "evaluate", {"protocol": protocol, "options": options, "tokens": tokens.digest, "right": correct}, fill
        )

    def report(self, *build: Artifact, compared: Sequence[Artifact] = ()) -> StageResult:
        given = (self.images, *build)
        images = {"source": self.source, "decoding": DecodingOptions()}
        return report(given, compared=tuple(compared), title="demo", **images, workspace=self.workspace)

    def html(self, *build: Artifact, compared: Sequence[Artifact] = ()) -> str:
        return (self.report(*build, compared=compared).artifact.path / "report.html").read_text()


def pictures_in(folder: Path, names: Sequence[str]) -> Pictures:
    write_pictures(folder / "photos", list(names))
    workspace = Workspace(Settings(data_root=folder / "root", device="cpu", workers=0))
    source = ImageSourceOptions(path=str(folder / "photos"))
    return Pictures(index_images(source, workspace=workspace).artifact, source, workspace)
