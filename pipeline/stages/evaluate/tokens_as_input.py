"""Tokens as input (Table 7): what a classifier knows of an image from its tokens alone, for any token store."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.heads.token_classifier import TokenMLP, TokenViT, parameter_groups
from models.objectives.base import ObjectiveOutput
from models.vit.options import SHAPES
from pipeline.data.labelled_images import seeded
from pipeline.data.token_rows import open_tokens
from pipeline.engine.batches import Batch
from pipeline.engine.errors import PipelineError
from pipeline.engine.processes import Processes
from pipeline.stages.evaluate.evaluation_options import TokensAsInputOptions
from pipeline.stages.evaluate.protocol import (
    EvaluationJob,
    MemoryFeed,
    Metric,
    Protocol,
    judged_together,
    own_batches,
    top_correct,
    write_top_scores,
)
from pipeline.training.loop import Reporter
from storage.image_index import ImageIndex

_AT_ONCE = 1024  # images that are judged


class TokenClassification(nn.Module):
    """`(tokens [B, N], labels [B])`."""

    def __init__(self, network: TokenMLP | TokenViT) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor, labels: Tensor) -> ObjectiveOutput:
        logits = self.network(tokens)
        right = (logits.detach().argmax(1) == labels).float().mean()
        return ObjectiveOutput(F.cross_entropy(logits, labels), {"top1": right})

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        return parameter_groups(self.network, weight_decay)


def tokens_as_input(job: EvaluationJob, processes: Processes, reporter: Reporter) -> dict[str, Any]:
    """Do one process's part; return notes on how it went. The first process writes the scores.

    Raises:
        PipelineError: there are no tokens.
        StoreMismatch: they belong to other images.
    """
    options = job.options
    assert isinstance(options, TokensAsInputOptions)
    if job.tokens is None:
        raise PipelineError("tokens_as_input needs a token store; build one with `mapet kclip-build`")
    store, index, splits = open_tokens(job.tokens, job.images), ImageIndex.read(job.images.path), job.splits()
    tokens = store.decoded(job.settings.layout.decoded_tokens, job.tokens.digest)

    def load(rows: np.ndarray) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(tokens[rows].astype(np.int64)), torch.from_numpy(index.labels[rows].astype(np.int64))

    feed = MemoryFeed(load, splits.train, splits.val)
    network = _network(options, store.vocabulary, splits.classes, patches=tokens.shape[1])
    speed = job.train(TokenClassification(network), feed, options.training, processes, reporter)
    network.eval()

    def judge(batch: Batch) -> Tensor:
        given, labels = batch.inputs
        return top_correct(network(given), labels)

    batches = own_batches(feed, splits.val, processes, size=_AT_ONCE)
    correct = judged_together(network, batches, judge, processes, total=len(splits.val))
    reading = f"{options.network} on {store.attributes['tokenizer']} tokens"
    processes.by_first(lambda: write_top_scores(job.folder, correct, splits.classes, reading))
    return speed


def _network(options: TokensAsInputOptions, vocabulary: int, classes: int, *, patches: int) -> TokenMLP | TokenViT:
    with seeded(options.seed):
        if options.network == "mlp":
            return TokenMLP(vocabulary, classes, width=options.width)
        shape = SHAPES["vit_tiny"]
        return TokenViT(vocabulary, classes, patches=patches, width=shape.width, depth=shape.depth, heads=shape.heads)


def _parts(train: int, val: int) -> dict[str, int]:
    return {}  # tokens are judged in no time


TOKENS_AS_INPUT = Protocol(
    "Tokens as input",
    (Metric("top1", "top1_tokens_as_input", "Tokens as input, top-1"), Metric("top5", "top5_tokens_as_input")),
    tokens_as_input,
    parts=_parts,
)
