"""New findings on a finished run: python evaluate.py run=<run folder> evaluation=[geometry]"""

from tunediff.settings import verb


@verb("evaluate")
def main(cfg):
    from tunediff.study.reevaluate import reevaluate

    return reevaluate(cfg)


if __name__ == "__main__":
    main()
