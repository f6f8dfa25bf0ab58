"""Tables, engine, upsert, ledger and read queries: the only room that knows SQL dialects.

Functions here take an open connection and never commit; whoever opened the transaction ends it.
"""
