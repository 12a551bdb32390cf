"""Which processors lose the sum of two products of bytes."""

from __future__ import annotations

import pytest

from compress.engines.openvino import quantize as openvino_quantize


@pytest.mark.parametrize(
    ("isa", "overflow"),
    [
        ("x86_64 avx avx2 sse4_1 sse4_2", True),
        ("x86_64 avx avx2 avx512bw avx512f", True),
        ("x86_64 avx avx2 avx512_vnni avx512f", False),
        ("x86_64 avx avx2 avx_vnni", False),
        ("x86_64 amx_int8 avx2", False),
        ("aarch64 asimd asimddp", False),
    ],
)
def test_bytes_overflow_on_x86_without_vnni(monkeypatch: pytest.MonkeyPatch, isa: str, overflow: bool) -> None:
    monkeypatch.setattr(openvino_quantize, "machine_fact", lambda kind: isa)
    assert openvino_quantize.bytes_overflow() is overflow
