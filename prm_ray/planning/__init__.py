"""What a run needs before it runs: memory a GPU, time a stage, and what to change where it does not fit.

Arithmetic on settings, a model's shape and a GPU's data sheet; neither torch nor Ray is loaded. docs/planning.md has
the formulas.
"""
