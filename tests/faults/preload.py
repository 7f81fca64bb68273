"""What the fork server of `kills` imports, so that a process that is to be killed spends no seconds on imports."""

import faiss.contrib.torch_utils  # noqa: F401
import open_clip  # noqa: F401
import sklearn.datasets  # noqa: F401
import torch._dynamo  # noqa: F401

import pipeline.engine.mlflow_tracker  # noqa: F401
import tests.faults.chain  # noqa: F401
