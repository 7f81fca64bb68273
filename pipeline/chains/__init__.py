"""The chains of stages as graphs, each written once: running, planning, announcing and Prefect walk the same one."""
