"""Runs and sweeps side by side in the terminal: python compare.py <folder>..."""

import sys

from tunediff.shapes import Refused


def main(folders):
    from tunediff.study.finished import compare

    print(compare(folders))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Refused as refusal:
        sys.exit(f"error: {refusal}")
