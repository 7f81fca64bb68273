"""The errors of stores and artifacts. Every message names the path, what was expected, what was found, what to do."""


class StorageError(Exception):
    """Something on disk cannot be used."""


class ArtifactMissing(StorageError):
    """No complete artifact lies at the path."""


class ArtifactDamaged(StorageError):
    """An artifact's bytes are not those that were published."""


class StoreInvalid(StorageError):
    """A store's content breaks a rule of its format (shape, dtype, range, duplicate rows)."""


class StoreMismatch(StorageError):
    """Two stores do not belong together: their rows mean different images."""


class RemoteAddressInvalid(StorageError):
    """The address of an object store cannot be one, or has keys in it."""


class RemoteUnavailable(StorageError):
    """The object store does not answer, or not to us."""


class RemoteDamaged(StorageError):
    """An object is not what was uploaded."""
