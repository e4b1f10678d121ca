"""Reads people's data into records.

    sources         files, folders, save_to_disk, the hub
    text, arrow     file formats: JSON, CSV, compressed files; Parquet and Arrow
    columns         a row's columns under our names; unused ones are reported by name
    conversations   conversations written as strings, ShareGPT's turns, tools
    shapes          rows of popular data sets as prompts, demonstrations and preferences; rows/ reads their columns
    splits          the split of a row, the same for every stage
    reading         all of it, with bad rows refused or dropped and counted
    command         `tiebreak data FILE`

Nothing here imports torch.
"""
