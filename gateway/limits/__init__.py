"""Limits: how much of a minute's requests and tokens, and of places at a time, is used, whoever asks.

    window.py    the rule of a minute                      pure
    store.py     what a store is asked, and says           values
    memory.py    for one worker
    sqlite.py    for the workers of one machine
    shared.py    for several machines: Redis or Valkey, the same rule in Lua
    desk.py      asks a shared store beside the event loop, and knows when it is away

One suite (`tests/limits`) holds all three stores to the same answers.
"""
