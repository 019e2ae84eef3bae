"""The exception whose messages are written for users."""


class UserError(Exception):
    """A problem that the user can fix: the message says what is wrong, where, and what to do.

    A stage that raises it ends with this message only, without a traceback.
    """
