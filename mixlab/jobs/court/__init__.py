"""The kernel court: which program computes each op of a run, decided by trial on its own shapes.

At the start of a run on a GPU, every backend that could serve an op is checked against the op's
definition and timed; the fastest that agrees is used wherever the config says `auto`. The verdicts
are kept in the run folder and used again when it is resumed; a cache spares other runs of the same
shapes the trial. A backend that the config names is never tried or swapped.
"""
