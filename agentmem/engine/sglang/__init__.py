"""The real engine: SGLang 0.5.20, launched, watched, talked to, stopped; and what runs inside.

`launch` says how it is started (pure), `process` starts and ends it, `client` speaks to it,
`canary` proves that pages really go out and come back, `plugin` is its storage backend, `cpu`
makes it run without a GPU, `model` knows models.
"""
