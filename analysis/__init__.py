"""Is the teacher right? The published project's offline analysis of teacher contexts, and what this project adds.

Scripts run as `python analysis/X.py` and as `python -m analysis.X`. Run as a file, Python puts this folder first in
`sys.path`, where `inspect.py` would stand before the standard library's: a script therefore begins by putting the
project's root there instead, before any other import.
"""
