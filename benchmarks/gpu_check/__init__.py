"""Half an hour with a card: does everything that was written for GPUs work on this one, and how fast?

`make gpu-check`, or `python -m benchmarks.gpu_check` on a machine that has torch and little else. Every step is a
process of its own with a limit of its own: one that fails, dies or hangs is recorded, and the rest goes on. What a step
needs and cannot import is named.
"""
