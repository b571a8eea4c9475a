"""Trains a dictionary on a pair of models and shows what fine-tuning changed: python train.py, python train.py -m ..."""

from tunediff.settings import verb


@verb("train")
def main(cfg):
    from tunediff.run import study

    return study(cfg)


if __name__ == "__main__":
    main()
