"""The training loop and what it stands on; it knows `loss`, not which objective."""
