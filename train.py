"""Trains a dictionary on a pair of models and shows what fine-tuning changed: python train.py, python train.py -m ..."""

from tunediff.settings import run_folder, verb


@verb("train")
def main(cfg):
    from tunediff.study.train import study

    return study(cfg, run_folder())


if __name__ == "__main__":
    main()
