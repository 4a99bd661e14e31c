"""Object stores that speak S3: the one place that knows of boto3, which is imported when a store is asked for.

`place` reads locations, `client` holds connections, `trouble` knows what passes by itself and says what does not; on
these stand `stream` (reading), `upload`, `download` and `objects` (everything of one request). Each raises an `OSError`
in plain words; `evo_core.storage.files` is what others call.
"""
