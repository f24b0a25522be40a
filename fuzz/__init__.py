"""Fuzz targets for every parser that reads what strangers send, and the loop that drives them.

    python -m fuzz [--seconds N] [--target NAME] [--seed S]

A target is a function of bytes whose first docstring line is its invariant. It returns a *signature* of what happened (a refusal and why,
how many messages): an input with a signature not seen before is kept and mutated further, which stands in for coverage. Where `atheris`
is installed, `--coverage` measures real coverage instead. Inputs that break an invariant are made small and saved under .fuzz/; each
becomes a test before it is fixed.
"""
