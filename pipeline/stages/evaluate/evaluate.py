"""Stage `evaluate`: one protocol on one backbone, pre-trained or from scratch (or on tokens, or on CLIP itself).

The artifact holds `scores.json` (numbers in percent with bootstrap intervals), `correct.npz` (which validation images
were judged right, from which differences between evaluations can be tested) and the curves of whatever was trained; of
a fine-tuning also the classifier, if it is to be kept.
"""

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from models.clip.options import ClipOptions
from models.objectives.colours import objective_colour
from models.vit.options import BackboneOptions
from pipeline.data.inputs import Images, Network
from pipeline.data.stored_squares import squares_of_tokens
from pipeline.engine.fingerprint import defining_options
from pipeline.engine.stage import Made, Source, Stage, recipe_of
from pipeline.engine.stage_record import BuildNotes
from pipeline.engine.tracker import TrackedRun
from pipeline.stages.evaluate.evaluation_options import EvaluationOptions, SegmentationOptions
from pipeline.stages.evaluate.judged_clip import zero_shot_definition
from pipeline.stages.evaluate.protocol_sections import KnownProtocol
from pipeline.stages.evaluate.protocols import PROTOCOLS
from pipeline.stages.evaluate.scores import read_scores
from pipeline.stages.evaluate.segmented_images import unread_words
from pipeline.stages.evaluate.subject import Subject
from pipeline.stages.recipe_views import PretrainRecipe
from pipeline.stages.records import EvaluateRecord
from storage.artifact import Artifact, Built, Recipe
from storage.files import sha256_bytes
from storage.token_store import TokenStore


@dataclass(frozen=True)
class Evaluate(Stage):
    """Evaluate by one protocol.

    Attributes:
        protocol: a name in PROTOCOLS; `options` are of its class.
        backbone: what was pre-trained, or what to train from scratch.
        pretrained: None for random weights, and for protocols without a backbone.
        tokens: of the images: judged by protocols of tokens; the others leave out images that have none.
        clip: the encoder that made the tokens, for the protocol that judges it.
        drawn: the pictures to segment, where they are the demo's.
        data_set: what the images are called, where they are not those of the pre-training.
        squares: the stage that keeps the images' squares, if these are what the protocol would cut.
        keep_weights: put what was trained into the artifact; only `fine_tune` can.
    """

    NAME: ClassVar[str] = EvaluateRecord.STAGE
    VERSION: ClassVar[int] = 3
    COMPARED: ClassVar[bool] = True

    protocol: str
    options: EvaluationOptions
    backbone: BackboneOptions
    images: Images
    tokens: Source | None = None
    pretrained: Source | None = None
    clip: Network[ClipOptions] | None = None
    drawn: Source | None = None
    data_set: str = ""
    keep_weights: bool = False
    squares: tuple[Source, ...] = ()

    @property
    def spared_by(self) -> tuple[Source, ...]:
        return self.squares

    def preparation(self, made: Made) -> str:
        options = self._options_in(made)
        return unread_words(options, made.settings.layout) if isinstance(options, SegmentationOptions) else ""

    def recipe(self, made: Made) -> Recipe:
        """Raises ModelError when a CLIP that is judged cannot be loaded."""
        options = self._options_in(made)
        definition: dict[str, Any] = {"protocol": self.protocol, "options": defining_options(options)}
        definition |= {"data_set": self.data_set} if self.data_set else {}
        definition |= self._judged_definition(options, made)
        definition |= {"keep_weights": True} if self.keep_weights else {}  # as the fingerprints there have always been
        inputs = {} if self._chosen.images else {"images": made[self.images.index].digest}
        inputs |= {"pretrain": made[self.pretrained].digest} if self.pretrained else {}
        return recipe_of(self, definition, **inputs)

    def build(self, made: Made, folder: Path, run: TrackedRun) -> Built:
        """Run the protocol.

        Raises:
            PipelineError: there are no labelled images, or an image cannot be decoded.
            ModelError: the weights do not fit.
        """
        from pipeline.stages.evaluate.protocol import EvaluationJob
        from pipeline.training.launch import train_together
        from pipeline.training.loop import CHECKPOINTS

        judged, what = self._origin(made), self._what(made)
        run.tags({"protocol": self._named, "objective": judged, "mlflow.runColor": objective_colour(judged)})
        kept = next((made[one] for one in self.squares if one in made), None)
        kept = squares_of_tokens(kept, made.get(self.tokens), made[self.images.index])
        job = EvaluationJob(
            options=self._options_in(made),
            subject=self._subject(made),
            images=made[self.images.index],
            source=self.images.source_in(made),
            tokens=made.get(self.tokens),
            folder=folder,
            settings=made.settings,
            clip=None if self.clip is None else self.clip.options_in(made),
            squares=None if kept is None else kept.path,
            keep_weights=self.keep_weights,
        )
        notes = train_together(partial(self._chosen.load().run, job), made.settings, run, what=what)
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        scores = read_scores(folder)
        record = EvaluateRecord(
            scores={score.name: score.value for score in scores},
            val_images=scores[0].images,
            what=what,
            parameters=notes.pop("parameters", None),
        )
        run.metrics(record.scores)
        return record.built(notes)

    def label(self, made: Made) -> str:
        return f"evaluate {self._what(made)}"

    def distinction(self, made: Made) -> str:
        of = f"of {_training(made[self.pretrained], made.get(self.tokens))}; " if self.pretrained else ""
        return f"{of}seed {self.options.seed}"

    def tell(self, artifact: Artifact, made: Made, run: TrackedRun) -> None:
        """Write the scores onto the run of the pre-training too: MLflow's table of pre-trainings then is the
        comparison."""
        if self.pretrained is not None:
            scores = {f"eval/{self._named}/{score.name}": score.value for score in read_scores(artifact.path)}
            run.annotate(BuildNotes.of(made[self.pretrained]).tracking_run, scores)

    @property
    def _chosen(self) -> KnownProtocol:
        return PROTOCOLS[self.protocol]

    @property
    def _named(self) -> str:
        return f"{self.protocol}_{self.data_set}" if self.data_set else self.protocol

    def _subject(self, made: Made) -> Subject:
        return Subject(self.backbone, made.get(self.pretrained))

    def _origin(self, made: Made) -> str:
        judges = self._chosen.judges
        return self._subject(made).origin if judges == "backbone" else judges

    def _what(self, made: Made) -> str:
        of_backbone = self._chosen.judges == "backbone"
        return f"{self._named} {self._subject(made).label if of_backbone else _tokenizer(made.get(self.tokens))}"

    def _options_in(self, made: Made) -> EvaluationOptions:
        if self.drawn is None:
            return self.options
        return self.options.model_copy(update={"path": str(made[self.drawn].path)})

    def _judged_definition(self, options: EvaluationOptions, made: Made) -> dict[str, Any]:
        """Return what the scores depend on beside the options and the inputs."""
        tokens = made.get(self.tokens)
        if self._chosen.judges == "tokens":
            return {"tokens": tokens.digest if tokens else None}
        if self._chosen.judges == "clip":
            clip = None if self.clip is None else self.clip.options_in(made)
            return {"clip": clip and zero_shot_definition(clip, made.settings.layout), "usable_images": _usable(tokens)}
        judged: dict[str, Any] = {"backbone": defining_options(self.backbone)}
        if self._chosen.images:
            return {**judged, "images": self._chosen.images(options, made.settings.layout).identity}
        return {**judged, "usable_images": _usable(tokens)}


def _tokenizer(tokens: Artifact | None) -> str:
    return str(TokenStore(tokens.path).attributes["tokenizer"]) if tokens else "CLIP"


def _training(pretrained: Artifact, tokens: Artifact | None) -> str:
    """Say what tells a pre-training from others with the same objective and backbone."""
    recipe = PretrainRecipe.of(pretrained)
    words = [recipe.training.length.words, f"seed {recipe.seed}"]
    if tokens is not None and recipe.inputs.tokens == tokens.digest:
        words.insert(0, _tokenizer(tokens))
    return ", ".join(words)


def _usable(tokens: Artifact | None) -> str | None:
    """Return a digest of which images have tokens: of the tokens only that counts, and scores are the same for every
    tokenizer of these images."""
    return None if tokens is None else sha256_bytes(TokenStore(tokens.path).status.tobytes())
