"""Command line and composed config -> checked settings and objects, before any model is loaded. Knows no torch.

typed.py         the words of a command line: flags and settings
command_line.py  what was typed, refused in one sentence where Hydra cannot compose it
checked.py       a composed config -> checked settings, and the objects that they describe
identity.py      what a study is, and the folder that stands for it
"""

from tunediff.settings.checked import LEARNING, READ_BY_STUDY, build, check, plain, refuse_unset, unset
from tunediff.settings.command_line import (
    begun,
    check_command_line,
    named,
    nothing_written,
    of_its_own,
    said_plainly,
    verb,
    with_files,
)
from tunediff.settings.identity import (
    digest,
    environment,
    identity,
    line,
    material,
    pinned,
    read_by,
    run_folder,
    stream_key,
    within,
    words_typed,
)

__all__ = [
    "LEARNING",
    "READ_BY_STUDY",
    "begun",
    "build",
    "check",
    "check_command_line",
    "digest",
    "environment",
    "identity",
    "line",
    "material",
    "named",
    "nothing_written",
    "of_its_own",
    "pinned",
    "plain",
    "read_by",
    "refuse_unset",
    "run_folder",
    "said_plainly",
    "stream_key",
    "words_typed",
    "unset",
    "verb",
    "with_files",
    "within",
]
