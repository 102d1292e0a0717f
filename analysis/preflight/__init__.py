"""Before GPU days are spent: what a run would start from, and what its teacher would teach (docs/preflight.md).

`measure.py` takes the run's first steps at a learning rate of zero, `teacher.py` asks the teacher under other contexts,
`answers.py` masks final answers, `verdicts.py` holds the thresholds, `page.py` shows it all; `__main__.py` is the command.
"""
