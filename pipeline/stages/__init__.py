"""The stages, one file each: their list recites the pipeline."""
