"""What tells one network from another: the digest of its tensors, and of what these do not tell."""

import hashlib
import json
from collections.abc import Mapping

from torch import Tensor, nn


def network_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that features depend on, by name, in the order of the network."""
    return {name: tensor for name, tensor in network.state_dict().items() if counts(name)}


def counts(name: str) -> bool:
    """Return whether features depend on a tensor of that name: `num_batches_tracked` is for training alone."""
    return not name.endswith("num_batches_tracked")


def network_digest(network: nn.Module, said: Mapping[str, object]) -> str:
    """Hash names, shapes, dtypes and bytes of a network's tensors, and what is `said` of it, by SHA-256.

    Equal for equal values: it knows neither the file they came from nor the form (float16, safetensors) it had.
    """
    return digest_below(json.dumps(said, sort_keys=True), network)


def digest_below(header: str, network: nn.Module) -> str:
    """Hash the same below a first line."""
    digest = hashlib.sha256(f"{header}\n".encode())
    for name, tensor in network_tensors(network).items():
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()
