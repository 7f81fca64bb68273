"""The pass of all images through a frozen network, in shards, and the networks themselves."""
