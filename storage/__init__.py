"""Bytes on disk: artifacts, the image index, feature samples, codebooks and token stores. numpy, no torch."""
