"""What every stage is handed: a workspace, this machine's settings, who tracks it, and what keeps it going."""
