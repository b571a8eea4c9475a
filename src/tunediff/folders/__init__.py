"""The run folder: what lies in it, who writes it, and how it becomes whole.

    config.yaml  identity.json  state.json  dictionary/  findings.json  figures.json  tables/*.parquet  report.html  run.log
    lock         manifest.json  latent_cache/ where it was asked for

The folder is the interface between commands. Every file is written to a temporary name, flushed and renamed, so a
reader never sees half of one, and manifest.json has the checksums of those that a run leaves. `lock` is held by the one
process that writes; the system lets go of it when that process dies, whichever way.

manifest.py   files that are written whole and read as they were written
state.py      who holds a folder, and how far its run is
ownership.py  the file that says who holds it, of all hosts
findings.py   findings, figures and tables
ending.py     logs and other files that go on changing, when the run ended
"""

from tunediff.folders.ending import changed_since, note_ended
from tunediff.folders.findings import (
    clear,
    columns_in,
    figures_of,
    findings_of,
    read_table,
    write_findings,
    write_table,
)
from tunediff.folders.manifest import (
    MANIFEST,
    added_to,
    as_written,
    begin_growing,
    begin_manifest,
    changing,
    check_whole,
    digest_of,
    entries,
    flush,
    gone_from,
    put,
    read_bytes,
    read_json,
    remove_partial,
    replacing,
    settle,
    verify,
    write_atomically,
    write_sealed,
)
from tunediff.folders.state import (
    CANCELLED,
    EVALUATING,
    FAILED,
    FINISHED,
    INTERRUPTED,
    RUNNING,
    WAITING,
    Taken,
    check_held,
    clock,
    held,
    is_finished,
    is_held,
    locked,
    make_folder,
    note_end,
    read_state,
    refuse_links,
    remove_made,
    say,
    state_of,
    unless_refused,
)
