"""The one exception whose message is meant for the person who started the run."""


class UserError(Exception):
    """Something the user can mend: names the thing, its value and the remedy. Printed without a traceback."""
