"""MOPD: a language model learns from its own group of attempts (arXiv 2605.12652).

The method is readable in three files: `peers/select.py` (who is shown to the teacher), `peers/render.py`
(how the teacher's prompt reads) and `divergence.py` (how far the student is from the teacher).
"""
