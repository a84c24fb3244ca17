"""The native kernels, built here with g++ and run: every instruction set against the plain twin, bit for bit.

`linear_test.cc` holds the checks. AVX-512 is emulated with SIMDe, and runs as it is too where the machine has it; Arm
NEON is cross-compiled and run under qemu. One digest of all results must come out of every build.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "src" / "gemmary" / "csrc"
CORE = ["formats", "activations", "packed", "pack", "unpack", "kernels"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mfma", "-mf16c"]
NEON = ["-march=armv8.2-a+dotprod"]
FORMATS = ["F32", "BF16", "F16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]

on_x86 = platform.machine() in ("x86_64", "AMD64")


def processor_flags() -> set[str]:
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    return set(found.group(1).split()) if found else set()


def run(command: Sequence[str | Path]) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


class Builder:
    """Compiles the test program out of objects, each with its own flags."""

    def __init__(self, folder: Path, compiler: str, common: Sequence[str] = ()) -> None:
        self.folder, self.compiler, self.common = folder, compiler, list(common)
        self.objects: list[Path] = []

    def add(self, source: Path, flags: Sequence[str] = (), name: str = "") -> Builder:
        target = self.folder / f"{name or source.stem}.o"
        base = ["-std=c++20", "-ffp-contract=off", "-Wno-psabi", f"-I{CSRC}", f"-I{HERE}"]
        run([self.compiler, *base, *self.common, *flags, "-c", source, "-o", target])
        self.objects.append(target)
        return self

    def add_isa(self, isa: str, flags: Sequence[str]) -> Builder:
        self.add(CSRC / f"isa_{isa}.cc", flags)
        return self.add(HERE / "simd_probe.cc", [*flags, f"-DGEMMARY_ISA_{isa.upper()}"], f"probe_{isa}")

    def link(self, flags: Sequence[str] = ()) -> Path:
        program = self.folder / "linear_test"
        run([self.compiler, *self.common, *flags, *self.objects, "-o", program])
        return program


def add_core(builder: Builder, flags: Sequence[str] = ()) -> Builder:
    for name in CORE:
        builder.add(CSRC / f"{name}.cc", flags)
    return builder.add(HERE / "step_digest.cc", flags).add(HERE / "linear_test.cc", flags)


def need(program: str, why: str) -> str:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed: {why}")
    return program


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All instruction sets of x86-64, AVX-512 emulated."""
    if not on_x86:
        pytest.skip("not an x86-64 machine")
    compiler = need("g++", "it builds the native tests")
    if not Path("/usr/include/simde/x86/avx512.h").exists():
        pytest.skip("SIMDe (Debian: libsimde-dev) is not installed: AVX-512 cannot be emulated")
    builder = add_core(Builder(tmp_path_factory.mktemp("native"), compiler), ["-O1", "-DGEMMARY_EMULATE_AVX512"])
    builder.add_isa("scalar", ["-O1"]).add_isa("avx2", ["-O2", *AVX2])
    return builder.add_isa("avx512", [*AVX2, "-DGEMMARY_EMULATE_AVX512"]).link()


@pytest.fixture(scope="module")
def report(program: Path) -> str:
    return run([program])


def digest(report: str) -> str:
    found = re.search(r"digest ([0-9a-f]{16}) checks (\d+)", report)
    assert found is not None, report
    assert int(found.group(2)) > 1_000_000
    return found.group(1)


def test_every_instruction_set_gives_the_same_bits(report: str) -> None:
    if "avx2" not in processor_flags():
        pytest.skip("this machine has no AVX2")
    assert report.startswith("scalar avx2 avx512 digest")


def test_neon_gives_the_same_bits_under_qemu(report: str, tmp_path: Path) -> None:
    compiler = need("aarch64-linux-gnu-g++", "it cross-compiles the Arm kernels")
    qemu = need("qemu-aarch64-static", "it runs the Arm kernels")
    builder = add_core(Builder(tmp_path, compiler), ["-O1"]).add_isa("scalar", ["-O1"]).add_isa("neon", NEON)
    arm = run([qemu, builder.link(["-static"])])
    assert arm.startswith("scalar neon digest")
    assert digest(arm) == digest(report)


def test_real_avx512_gives_the_same_bits(report: str, tmp_path: Path) -> None:
    if not {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"} <= processor_flags():
        pytest.skip("this machine has no AVX-512 VNNI; the emulated kernels were tested")
    builder = add_core(Builder(tmp_path, "g++"), ["-O1"])
    builder.add_isa("scalar", ["-O1"]).add_isa("avx2", ["-O1", *AVX2]).add_isa("avx512", ["-O1", *AVX512])
    real = run([builder.link()])
    assert real.startswith("scalar avx2 avx512 digest")
    assert digest(real) == digest(report)


def test_clean_under_the_sanitizers(report: str, tmp_path: Path) -> None:
    builder = Builder(tmp_path, "g++", ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"])
    add_core(builder, ["-DGEMMARY_WITHOUT_AVX512"]).add_isa("scalar", []).add_isa("avx2", AVX2)
    run([builder.link(), "brief"])


def test_wide_code_cannot_leak_into_narrow_units(program: Path) -> None:
    """Of an inline function in units with different flags the linker could keep the wide version: have none."""
    need("nm", "it lists symbols")
    for isa in ("avx2", "avx512"):
        symbols = run(["nm", "-C", "--defined-only", program.parent / f"isa_{isa}.o"]).splitlines()
        weak = [line.split(" ", 2)[2] for line in symbols if re.match(r"\S+ [VWu] ", line)]
        own = (f"gemmary::{isa}::", "gemmary::emulated::", "simde")
        shared = [name for name in weak if not any(part in name for part in own)]
        assert not shared, shared


def random_blocks(name: str, rows: int, cols: int) -> npt.NDArray[np.uint8]:
    """Any bits at all, but finite scales."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    rng = np.random.default_rng(5)
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    if name in ("F32", "F16"):
        floats = rng.normal(size=(rows, cols)).astype(np.float32 if name == "F32" else np.float16)
        return np.ascontiguousarray(floats).view(np.uint8)
    blocks = rng.integers(0, 256, (rows, cols // block, size), dtype=np.uint8)
    halves = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "Q4_0": (0,), "Q5_0": (0,), "Q8_0": (0,), "BF16": ()}
    for at in halves.get(name, (0, 2)):
        scale = rng.normal(scale=0.02, size=(rows, cols // block)).astype(np.float16)
        blocks[:, :, at : at + 2] = scale[..., None].view(np.uint8)
    if name == "BF16":
        blocks[..., 1] &= 0xBF  # no infinity, no NaN
    return blocks.reshape(rows, -1)


def convert(program: Path, mode: str, name: str, rows: int, cols: int, data: bytes) -> bytes:
    command = [str(program), mode, name, str(rows), str(cols)]
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout


@pytest.mark.parametrize("name", FORMATS)
def test_unpack_equals_gguf(program: Path, name: str) -> None:
    quants = pytest.importorskip("gguf.quants")
    from gguf import GGMLQuantizationType

    rows, cols = 37, 512
    blocks = random_blocks(name, rows, cols)
    got = np.frombuffer(convert(program, "unpack", name, rows, cols, blocks.tobytes()), dtype=np.float32)
    expected = quants.dequantize(blocks, GGMLQuantizationType[name]).astype(np.float32).ravel()
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
def test_quantize_equals_gguf(program: Path, name: str) -> None:
    quants = pytest.importorskip("gguf.quants")
    from gguf import GGMLQuantizationType

    rng = np.random.default_rng(6)
    rows, cols = 64, 256
    x = (rng.standard_t(3, size=(rows, cols)) * 10.0 ** rng.integers(-6, 3, (rows, 1))).astype(np.float32)
    x[3], x[4, ::2] = 0.0, 0.0
    x[5] = rng.integers(-3, 4, cols)  # ties, in magnitude and in rounding
    x[6] = rng.integers(-254, 255, cols) * 0.5
    got = np.frombuffer(convert(program, "quantize", name, rows, cols, x.tobytes()), dtype=np.uint8)
    expected = quants.quantize(x, GGMLQuantizationType[name])
    np.testing.assert_array_equal(got, np.ascontiguousarray(expected).view(np.uint8).ravel())
