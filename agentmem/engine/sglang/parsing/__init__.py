"""What models write, taken apart by SGLang's own parsers, in a process beside the engine.

The gateway imports no SGLang: that is torch, several seconds and 400 MB. So the worker runs one
small server (`server`) that all replies of all gateways go through; `client` speaks to it, `wire`
is what they say. In the server, `segments` cuts text in places that do not depend on how it came
in, `calls` and `reply` drive SGLang's detectors, `formats` chooses them.
"""
