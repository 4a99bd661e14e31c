"""Raw files to documents. In: paths or URIs of text, JSON or Parquet, plain or packed. Out: texts, or records.

`documents` is the way in: `read_documents` gives the texts of a file, `read_records` its records. It stands on
`bytes` (unpacked while they are read), `lines` (numbered, of a range of the file where it is shared out), `json_list`
and `json_value` (one record at a time, whatever the file's size) and `parquet`; `unreadable` stands instead of a record
that cannot be read. `listing` says which raw files there are, the same for every command and step, and `patterns` is
the grammar by which they are chosen.
"""
