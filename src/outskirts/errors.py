"""The one exception that users meet. Kept apart so that raising it loads nothing."""


class OutskirtsError(ValueError):
    """Bad input, told in one line: what was given, what is accepted, what to do. The command line prints it bare."""
