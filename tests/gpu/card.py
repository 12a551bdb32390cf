"""The machine itself: what stands at the top of the report."""

from __future__ import annotations

from tests.gpu.sections import Report, Section


def measure(tiny: bool, report: Report) -> None:
    from compress.machine.devices import settled
    from evaluation.observe import hardware

    found = hardware.facts(settled("auto" if tiny else "cuda"))
    wanted = (
        *(
            "gpu",
            "gpu_driver",
            "gpu_capability",
            "gpu_memory_gb",
            "gpu_copy_gb_s",
            "gpu_gemm_bf16_tflop_s",
            "gpu_float32",
        ),
        *("processor", "logical_cores", "threads", "memory_gb", "read_gb_s", "gemm_gflop_s", "python"),
    )
    libraries = ", ".join(f"{name} {version}" for name, version in found["libraries"].items())
    report("machine", {**{name: found[name] for name in wanted if found.get(name)}, "libraries": libraries})


PARTS = {"machine": (Section("machine", 60, measure),)}
