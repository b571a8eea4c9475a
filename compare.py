"""Runs and sweeps side by side in the terminal: python compare.py <folder>..."""

import sys

from tunediff.settings import said_plainly


@said_plainly()
def main():
    from tunediff.study.finished import compare

    print(compare(sys.argv[1:]))


if __name__ == "__main__":
    main()
