"""What the user gets told. `USER_ERRORS` are the errors that a command prints as one sentence, without a traceback."""

from models.errors import ModelError
from storage.errors import StorageError


class PipelineError(Exception):
    """A stage cannot go on; the message says where, what came, what was expected and what to do."""


USER_ERRORS = (PipelineError, StorageError, ModelError)
