"""``foreach:`` in a pipeline file: one step written, one step for each value of its variables.

It is carried out on the file's data before anything else looks at the steps, so that what comes out is as if somebody
had written every step by hand: with the same keys, in the same store. ``${each.NAME}`` is a step's own value.

Which steps there are is one rule: a table of rows, each a value for every variable. A step's own ``foreach`` is a
table (a map of lists: their product; a list of maps: these), and so is every sweep that it needs. They are joined: a
variable of the same name has the same value. So a step without a foreach that needs a sweep follows it, one for one.
"""

from flows.pipeline.foreach.expand import expand, forget_rows

__all__ = ["expand", "forget_rows"]
