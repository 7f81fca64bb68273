"""What scores are called where results of several protocols stand side by side, as the protocols say."""

from collections.abc import Mapping
from functools import cache

from pipeline.stages.evaluate.protocols import PROTOCOLS


def metric_name(protocol: str, score: str, data_set: str) -> str:
    """Name a score of a protocol; by its own name where nobody gave it another."""
    known = PROTOCOLS.get(protocol)
    names = {metric.score: metric.name for metric in known.load().metrics} if known else {}
    return names.get(score, score).format(data_set)


def metric_title(metric: str) -> str:
    """Name a metric in words, without the data set that it may name in square brackets."""
    name = _of_any_data(metric)
    return _titles().get(name, name.replace("_", " "))


def is_main(metric: str) -> bool:
    """Return whether figures show it of its protocol."""
    return _of_any_data(metric) in _titles()


@cache
def _titles() -> Mapping[str, str]:
    metrics = (metric for known in PROTOCOLS.values() for metric in known.load().metrics)
    return {_of_any_data(metric.name): metric.title for metric in metrics if metric.title}


def _of_any_data(metric: str) -> str:
    return metric.partition("[")[0]
