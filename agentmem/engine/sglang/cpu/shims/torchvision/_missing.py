"""Attributes that raise when they are used, not when they are imported."""


def missing_from(module):
    """Makes a module's `__getattr__`: any public name is a callable that raises with its name."""

    def getattr_of_module(name):
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*args, **kwargs):
            raise RuntimeError(f"{module}.{name} is not available: agentmem serves text models")

        missing.__name__ = name
        return missing

    return getattr_of_module
