"""What models and tokenizers refuse, in words meant for the user."""


class ModelError(ValueError):
    """A model, its weights or its input cannot be used; the message says what came, what was expected, what to do."""


def in_short(error: Exception) -> str:
    """Cut a library's error, whose message may run to pages, to its kind and first line."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
