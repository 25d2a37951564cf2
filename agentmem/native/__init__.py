"""What moves and checks page bytes: in C where the library was built, in Python where it was not.

`datapath` is what everyone calls: one call per batch of pages. Inside SGLang's scheduler Python
threads starve (its main loop spins on the interpreter lock), so the C library lets go of the lock
once a call and works on threads of its own.
"""
