"""What a user can put right: one line, exit code 2."""


class UserError(Exception):
  """Needed, came, what to do: shown to the user as one line, no traceback."""
