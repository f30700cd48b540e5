"""The command `gaitjax`: a command for videos (gaitjax.use.commands), or a config."""

import sys

COMMANDS = ("enroll", "identify", "watch", "gallery")
HELP = """
Commands for videos, each with --help (docs/identify.md):
  gaitjax enroll NAME VIDEO...       remember how somebody walks
  gaitjax identify VIDEO...          who walks there: a name, or unknown
  gaitjax watch VIDEO|CAMERA         the same, a line as each walk ends
  gaitjax gallery list|remove|check|export
"""


def run() -> None:
    """The program; its imports depend on what is asked."""
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:
        from gaitjax.use import commands

        raise SystemExit(commands.main(sys.argv[1:]))
    from gaitjax import main

    if {"--help", "-h"} & set(sys.argv):
        print(HELP)
    main.run()


if __name__ == "__main__":
    run()
