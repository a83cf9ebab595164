"""What a sweep does now, read from its files by whoever is curious: `expc status` and `expc monitor`.

    planned   the stages that there should be: from the script's plan, or from what lies on disk
    watch     reads the files and says what they hold, as one `Snapshot`
    estimate  how long is left, with a range
    words     the phrases that every view shares
    screen    a snapshot as a live display (needs rich)
    changes   two snapshots as lines that say what is new
    gpu       what nvidia-smi says, if it is there

Nothing is written and no lock is taken: a monitor can be killed, or run ten times at once, and no sweep notices.
"""
