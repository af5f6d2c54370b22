"""``python -m ropejit``: the command line, the same as the ``ropejit`` program's."""

import sys


def main():
    from ._ropejit import main

    return main(["ropejit", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
