"""What a user can put right: one line, exit code 2."""


class UserError(Exception):
  """Needed, came, what to do: shown to the user as one line, no traceback."""


def missing_extra(what: str, extra: str) -> UserError:
  """The error for a package that is not installed.

  Args:
    what: what needs which package, to begin the sentence with.
    extra: of setup.cfg, which brings the package.
  """
  return UserError(
    f'{what}: in the root of the project, python -m pip install --editable '
    f"'.[{extra}]'."
  )
