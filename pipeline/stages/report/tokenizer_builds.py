"""The tokenizers that a report tells of: each token store with what it was made from, and what people call it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from models.clip.options import LOCAL_DIR
from models.tokenizers.registry import tokenizer_words
from models.tokenizers.sections import TokenizerWords
from models.vqkd.options import PUBLISHED
from pipeline.stages.records import CodebookRecord, DemoClipRecord, FeaturesRecord, TokensRecord, VQKDRecord
from storage.artifact import Artifact
from storage.token_store import TokenStore

TOKENS, FEATURES, CODEBOOK = TokensRecord.STAGE, FeaturesRecord.STAGE, CodebookRecord.STAGE
VQKD, DEMO_CLIP = VQKDRecord.STAGE, DemoClipRecord.STAGE
TOKEN_STAGES = (DEMO_CLIP, FEATURES, CODEBOOK, VQKD, TOKENS)


@dataclass(frozen=True)
class TokenizerBuild:
    """A token store, and the artifacts that it was made from as far as a report was given them: `{stage: artifact}`."""

    stages: Mapping[str, Artifact]

    @property
    def tokens(self) -> Artifact:
        return self.stages[TOKENS]

    @cached_property
    def record(self) -> TokensRecord:
        """Of the tokens."""
        return TokensRecord.of(self.tokens)

    @property
    def store(self) -> TokenStore:
        return TokenStore(self.tokens.path)

    @cached_property
    def attributes(self) -> Mapping[str, Any]:
        """Of the store."""
        return self.store.attributes

    @property
    def kind(self) -> str:
        """`kclip`, `vqkd`, `dalle`, `pixels` or `random`."""
        return str(self.attributes["tokenizer"])

    @property
    def name(self) -> str:
        return self.words.title

    @property
    def words(self) -> TokenizerWords:
        return tokenizer_words(self.kind)

    @property
    def grid(self) -> tuple[int, int]:
        rows, columns = self.attributes["grid"]
        return rows, columns

    @property
    def ids(self) -> str:
        """What tokens are ids of."""
        return self.words.ids

    @property
    def clip(self) -> str:
        """The CLIP whose features were clustered, in words; "" if there is none, or none is known."""
        features = self.stages.get(FEATURES)
        return encoder_words(FeaturesRecord.of(features).encoder) if features and self.kind == "kclip" else ""

    @property
    def network(self) -> str:
        """What of a CLIP's or a VQ-KD's name counts, wherever its weights lie; "" of other networks."""
        noted = self.record.encoder
        if self.kind == "kclip":  # the activation that -quickgelu names is in the text tower alone
            return encoder_words(noted).removesuffix("-quickgelu")
        published = next((name for name in PUBLISHED if name in noted), encoder_words(noted))
        return published if self.kind == "vqkd" else ""

    @property
    def made_from(self) -> str:
        """What sees the images, in words, and how large it sees them."""
        size = self.attributes["encoder"]["image_size"]
        return f"{self._network(size)}; {size} px"

    def _network(self, size: int) -> str:
        if self.kind == "pixels":
            return "pixels of {} × {}".format(*(size // side for side in self.grid))  # noqa: RUF001
        if fitted := self.stages.get(VQKD):
            teacher = encoder_words(VQKDRecord.of(fitted).teacher)
            return "trained on these images" + (f", teacher {teacher}" if teacher else "")
        features = self.stages.get(FEATURES)
        noted = FeaturesRecord.of(features).encoder if features else self.record.encoder
        words = encoder_words(noted) or self.words.network or self.name
        return f"{words}, random weights" if self.kind == "random" and "random" not in words else words


def find_tokenizer_builds(artifacts: Iterable[Artifact]) -> tuple[TokenizerBuild, ...]:
    """Return a build for each token store among `artifacts`, in their order."""
    given = tuple({artifact.fingerprint: artifact for artifact in artifacts}.values())
    return tuple(TokenizerBuild(_made_from(one, given)) for one in given if one.stage == TOKENS)


def encoder_words(encoder: str) -> str:
    """Return the name of an encoder without the path that it may hold."""
    if not encoder.startswith(LOCAL_DIR):
        return encoder.rpartition("/")[2]
    path = Path(encoder.removeprefix(LOCAL_DIR))
    return "the demo's CLIP" if path.parent.name == DEMO_CLIP else f"a local CLIP, {path.name}"


def _made_from(tokens: Artifact, given: Sequence[Artifact]) -> dict[str, Artifact]:
    """Follow the digests of inputs back from the tokens to the artifacts that they were made from, `{stage:
    artifact}`."""
    found, waiting = {TOKENS: tokens}, [tokens]
    while waiting:
        inputs = set(waiting.pop().recipe.inputs.values())
        for artifact in given:
            if artifact.digest in inputs and artifact.stage in TOKEN_STAGES and artifact.stage not in found:
                found[artifact.stage] = artifact
                waiting.append(artifact)
    if VQKD not in found and (fitted := _fitted(tokens, given)):
        found[VQKD] = fitted
    return {stage: found[stage] for stage in TOKEN_STAGES if stage in found}


def _fitted(tokens: Artifact, given: Sequence[Artifact]) -> Artifact | None:
    """Return the VQ-KD of these tokens, which know it by its weights alone: the one that their notes name, or the only
    one."""
    if TokenStore(tokens.path).attributes["tokenizer"] != "vqkd":
        return None
    candidates = [artifact for artifact in given if artifact.stage == VQKD]
    if noted := TokensRecord.of(tokens).encoder:
        return next((one for one in candidates if one.fingerprint in noted), None)
    return candidates[0] if len(candidates) == 1 else None
