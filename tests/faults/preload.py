"""What the server of `tests.forked` imports, so that the processes of tests spend no seconds on imports."""

import gc

import faiss.contrib.torch_utils  # noqa: F401
import open_clip  # noqa: F401
import sklearn.datasets  # noqa: F401
import torch._dynamo  # noqa: F401

import pipeline.engine.mlflow_tracker  # noqa: F401
import tests.faults.chain
import tests.trainings  # noqa: F401

gc.collect()
gc.freeze()  # as in tests/conftest.py: what is imported stays, and no process looks through it for garbage
