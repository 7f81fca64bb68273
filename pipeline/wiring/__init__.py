"""Which stages run in which order and what they hand on. Written once; who runs them (a command, Prefect) is the
caller's."""
