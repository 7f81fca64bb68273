"""Tokens of patches while images are encoded."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from models.encoders.preprocessing import Preprocessing
from models.options import Options
from models.tokenizers.base import Tokenizer
from models.tokenizers.kclip import KClipTokenizer
from models.tokenizers.registry import name_of_tokens, tokenizer_of
from pipeline.data.image_batches import ImageBatch
from pipeline.encoding.encode import refuse_non_finite
from pipeline.encoding.networks import encoder_for, tokenizer_for
from pipeline.engine.settings import Settings
from storage.codebook_file import read_codebook
from storage.image_index import ImageIndex
from storage.token_store import NO_TOKEN


@dataclass(frozen=True)
class TokenEncoding:
    """The `Encoding` of the stage `tokenize_images`: a tokenizer that is not loaded yet."""

    options: Options
    digest: str  # of its network
    codebook: Path | None

    def tokenizer(self, settings: Settings) -> Tokenizer:
        if not tokenizer_of(self.options).clusters:
            return tokenizer_for(self.options, settings, digest=self.digest)
        assert self.codebook is not None
        encoder = encoder_for(self.options, settings, digest=self.digest)
        centroids = torch.from_numpy(read_codebook(self.codebook).centroids)
        return KClipTokenizer(encoder, centroids, name=name_of_tokens(self.options))

    def load(self, index: ImageIndex, settings: Settings) -> "_Tokens":
        return _Tokens(self.tokenizer(settings), index)


@dataclass(frozen=True)
class _Tokens:
    """Turns a batch into its tokens; a bad image has NO_TOKEN everywhere."""

    tokenizer: Tokenizer
    index: ImageIndex

    @property
    def network(self) -> Tokenizer:
        return self.tokenizer

    @property
    def preprocessing(self) -> Preprocessing:
        return self.tokenizer.preprocessing

    @property
    def schema(self) -> pa.Schema:
        patches = self.tokenizer.grid[0] * self.tokenizer.grid[1]
        return pa.schema([("row", pa.int64()), ("tokens", pa.list_(pa.uint16(), patches))])

    def __call__(self, batch: ImageBatch) -> pa.RecordBatch:
        found = self.tokenizer(batch.pixels)
        refuse_non_finite(found >= 0, batch, self.index)
        tokens = np.where(batch.valid[:, None], found[: len(batch)].cpu().numpy(), NO_TOKEN).astype(np.uint16)
        lists = pa.FixedSizeListArray.from_arrays(pa.array(tokens.reshape(-1)), tokens.shape[1])
        return pa.record_batch([pa.array(batch.rows), lists], schema=self.schema)
