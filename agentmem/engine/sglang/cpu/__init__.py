"""What SGLang 0.5.20 needs to run on a CPU with HiCache. Nothing of SGLang is changed on disk.

`shims/` goes onto the worker's PYTHONPATH and stands for packages that exist for CUDA only;
the modules are installed by `engine.sglang.activate` in each of SGLang's processes.
"""
