"""``python -m ropejit``: the command line, the same as the ``ropejit`` program's."""

import signal
import sys


def main():
    from ._ropejit import command_line

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # native code runs on, and would not see the interpreter's

    return command_line([sys.executable, "-m", "ropejit"], ["ropejit", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
