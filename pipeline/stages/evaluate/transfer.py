"""Cross-domain transfer (Table 5): linear probes on other data sets, each from its standard layout on disk."""

from pipeline.stages.evaluate.linear_probe import linear_probe
from pipeline.stages.evaluate.protocol import Protocol

TRANSFER = Protocol("Transfer", linear_probe)
