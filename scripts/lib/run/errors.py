"""The one exception that is written for users."""


class UserError(Exception):
    """A problem that its reader can fix: what is wrong, where, and what to do.

    A stage that raises it ends with this message alone, without a traceback.
    """
