"""Data as people have it, read into records.

    sources         what a source names: files, folders, save_to_disk, the hub
    text, arrow     the forms of files: JSON, CSV, compressed ones; Parquet and Arrow
    columns         a row's columns under our names; foreign ones are ignored by name
    conversations   conversations written as strings, ShareGPT's turns, tools
    shapes          the popular data sets' rows as prompts, demonstrations and preferences
    splits          which split a row belongs to, for every stage alike
    reading         all of it, with bad rows refused or dropped and counted
    command         `tiebreak data FILE`

Nothing here imports torch.
"""
