"""The command `gaitjax`: a command for videos or finished runs, or a config."""

import sys

COMMANDS = ("enroll", "identify", "watch", "gallery")  # gaitjax.use.commands
HELP = """
Commands for videos, each with --help (docs/identify.md):
  gaitjax enroll NAME VIDEO...       remember how somebody walks
  gaitjax identify VIDEO...          who walks there: a name, or unknown
  gaitjax watch VIDEO|CAMERA         the same, a line as each walk ends
  gaitjax gallery list|remove|check|export
Commands for finished runs:
  gaitjax report RUN                 report.html: curves, tables, error rates, pictures
  gaitjax export RUN|CARD            a function that needs only jax (docs/export.md)
"""


def run() -> None:
    """The program; its imports depend on what is asked."""
    command = sys.argv[1] if sys.argv[1:] else ""
    if command in COMMANDS:
        from gaitjax.use import commands

        raise SystemExit(commands.main(sys.argv[1:]))
    if command == "export":
        from gaitjax import export

        raise SystemExit(export.main(sys.argv[2:]))
    if command == "report":
        from gaitjax import report

        raise SystemExit(report.main(sys.argv[2:]))
    from gaitjax import main

    if {"--help", "-h"} & set(sys.argv):
        print(HELP)
    main.run()


if __name__ == "__main__":
    run()
