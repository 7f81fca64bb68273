"""Networks, objectives and clustering in torch: no paths of the pipeline, no servers, no stores."""
