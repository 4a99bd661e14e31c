"""Pipeline parallelism: the blocks of a model dealt out over stages, and micro-batches sent through them.

placing.py      which rank has which blocks
orders.py       in which order a rank computes the forward and backward passes of its micro-batches
timetable.py    orders with the messages between ranks, what runs when, and what that costs
halves.py       the second half of a backward pass that is made in two
stages.py       carries a timetable out
"""
