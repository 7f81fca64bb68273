"""What models and tokenizers refuse, in words meant for the user."""


class ModelError(ValueError):
    """A model, its weights or its input cannot be used; the message says what came, what was expected, what to do."""
