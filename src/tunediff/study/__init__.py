"""The stories: train a dictionary, make a tuned model, look again at a finished run. Only these files and those of sweep/ see
the composed config.

train.py     one study, from its config to its page     run.py        a study: its config, its folder, what became of it
finetune.py  a model learns a text                      parts.py      config -> the parts of a study, each checked
finished.py  a run folder -> the things in it           trainer.py    device, precision and processes; how steps are taken
reevaluate.py  new findings on a finished run
work.py      studies in a process started for them      estimate.py   memory, disk and time, before anything starts
described.py how a study names itself                   model_card.py what a fine-tune says of itself
faults.py    what the machine does not allow, in a sentence
"""
