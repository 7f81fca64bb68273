"""`mapet tokens`: a summary of a token store."""

import argparse

from storage.artifact import read_artifact
from storage.token_store import TokenStore


def show_tokens(options: argparse.Namespace) -> int:
    """Print what a token store says of itself, and how to read it."""
    artifact = read_artifact(options.artifact)
    store = TokenStore(artifact.path)
    tokens = store.load()
    values = {"artifact": str(artifact.path), "digest": artifact.digest, **artifact.summary, **store.attributes}
    values["classes"] = len(store.attributes.get("classes", []))
    values["shape"] = f"{tokens.shape[0]} images x {tokens.shape[1]} patches, {tokens.dtype}"
    for name, value in values.items():
        print(f"{name:<17} {value}")
    where = str(artifact.path / "tokens.zarr")
    print(f"\nRead it:  zarr.open({where!r}, mode='r')['tokens']   # zarr 3: the store is of Zarr's format 3")
    return 0
