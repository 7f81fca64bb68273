"""Cross-domain transfer (Table 5): linear probes on other data sets, each from its standard layout on disk."""

from pipeline.stages.evaluate.linear_probe import linear_probe
from pipeline.stages.evaluate.protocol import Metric, Protocol

TRANSFER = Protocol("Transfer", (Metric("top1", "linear_probe_top1[{}]", "Linear probe, top-1"),), linear_probe)
