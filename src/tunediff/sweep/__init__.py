"""Many studies as few passes of the models: what a sweep costs, where it runs, what is finished already.

plan.py      members -> groups that share a stream; finished ones are skipped, half-finished ones go on
local.py     groups here, a few at a time          slurm.py   groups as tasks of one job array
task.py      one of these tasks
launch.py    the story of a sweep, from the overrides to the table at its end
"""
