"""The paper as stages (`stages/`) and graphs of them (`chains/`), and what these stand on; nothing knows of Prefect."""
