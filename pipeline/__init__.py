"""The stages of the paper, as plain functions. Nothing here knows of Prefect."""
