"""Stand-in for `triton` on a CPU: SGLang and torch import it, no kernel of it is run.

Built from the mock classes that SGLang itself ships for Apple's MPS (`sglang/_platform_stubs.py`),
loaded by path, since `import sglang` would import triton again.
"""

import importlib.util
import sys
from pathlib import Path


def _load_stubs():
    for entry in sys.path:
        path = Path(entry or ".") / "sglang" / "_platform_stubs.py"
        if path.exists():
            spec = importlib.util.spec_from_file_location("_agentmem_platform_stubs", path)
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)
            return module
    raise ImportError("sglang/_platform_stubs.py was not found: is sglang 0.5.20 installed?")


def _install(stubs):
    # The finder answers for every submodule that is not set by hand below.
    sys.meta_path.insert(0, stubs._TritonFinder())

    def mock(name, **attributes):
        module = stubs._make_mock(name)
        for key, value in attributes.items():
            setattr(module, key, value)
        return module

    class constexpr:
        def __init__(self, value=None):
            self.value = value

    language = mock("triton.language", constexpr=constexpr)
    extra = mock("triton.language.extra")
    extra.libdevice = mock("triton.language.extra.libdevice")
    language.extra = extra
    runtime = mock("triton.runtime")
    runtime.jit = mock(
        "triton.runtime.jit",
        JITFunction=type("JITFunction", (), {}),
        KernelInterface=type("KernelInterface", (stubs._StubBase,), {}),
    )
    runtime.cache = mock("triton.runtime.cache", triton_key=stubs._triton_key)
    runtime.driver = mock("triton.runtime.driver")
    mock(
        "triton.runtime.autotuner",
        OutOfResources=type("OutOfResources", (Exception,), {}),
        PTXASError=type("PTXASError", (Exception,), {}),
    )
    compiler_compiler = mock(
        "triton.compiler.compiler",
        ASTSource=type("ASTSource", (stubs._StubBase,), {}),
        triton_key=stubs._triton_key,
    )
    backends = mock("triton.backends")
    backends.compiler = mock(
        "triton.backends.compiler", GPUTarget=type("GPUTarget", (stubs._StubBase,), {})
    )
    mock(
        "triton",
        __version__="3.0.0",
        cdiv=stubs._cdiv,
        next_power_of_2=stubs._next_power_of_2,
        Config=stubs._Config,
        language=language,
        runtime=runtime,
        compiler=mock(
            "triton.compiler",
            CompiledKernel=type("CompiledKernel", (stubs._StubBase,), {}),
            compiler=compiler_compiler,
        ),
        backends=backends,
        tools=mock("triton.tools", tensor_descriptor=mock("triton.tools.tensor_descriptor")),
        testing=mock("triton.testing"),
    )


_install(_load_stubs())
