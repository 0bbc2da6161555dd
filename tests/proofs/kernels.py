"""The checker of the kernels (tests/checker) on this CPU and on emulated ones."""

from __future__ import annotations

CROSS = "aarch64-linux-gnu-gcc"
CPUS = {  # the instruction sets that the emulator of each of these can run
    "qemu-x86_64": {"Nehalem": "sse2", "SandyBridge": "sse2", "Haswell": "avx2 sse2", "max": "avx2 sse2"},
    "qemu-aarch64": {"cortex-a53": "neon", "cortex-a72": "neon", "neoverse-n1": "neon", "max": "neon"},
}


def checker(job):
    program = job.build_checker()
    job.run(program, "--plants")
    job.run(program, "--scratch", "--count", 10 * job.count, "--seed", job.seed)
    job.run(program, "--count", job.count, "--seed", job.seed)


def emulated(job):
    for name, cpus in CPUS.items():
        cross = name == "qemu-aarch64"
        emulator = job.emulator(name)
        if emulator is None or (cross and not job.has(CROSS)):
            continue
        program = job.build_checker("-static", **({"CC": CROSS} if cross else {"PYCONV_BUILD_ISAS": "sse2,avx2"}))
        for cpu, isas in cpus.items():
            for isa in isas.split():
                arguments = (emulator, "-cpu", cpu, program, "--isa", isa)
                job.run(*arguments, "--count", max(job.count // 100, 500), "--seed", job.seed)
        job.run(emulator, "-cpu", "max", program, "--plants")
