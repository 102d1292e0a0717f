"""Do the responses of a model stay different from each other, and what has that to do with pass@k? (docs/diversity.md, behaviour 9)

`runs.py` reads what was sampled, `measures.py` says how different texts are, `summary.py` averages and compares runs;
`compute_metrics.py` and `plot_metrics.py` are the commands.
"""
