"""Makes the tuned half of a pair: python finetune.py recipe=sft_s1k model=qwen_0_5b"""

from tunediff.settings import run_folder, verb


@verb("finetune")
def main(cfg):
    from tunediff.study.finetune import finetune

    return finetune(cfg, run_folder())


if __name__ == "__main__":
    main()
