"""The processor, JetPack and the power mode, of machines made of files."""

import pytest

from runtime.doctor_board import check_cpu, check_jetpack, check_power
from tests.runtime.fake_machine import FakeMachine


@pytest.fixture
def machine(tmp_path):
    return FakeMachine(tmp_path)


@pytest.fixture
def jetson(machine):
    machine.jetson()
    return machine


def test_a_pc_tells_its_processor_and_flags(machine):
    cpu = "processor\t: {}\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx2 avx512f avx512_vnni\n\n"
    machine.file("proc/cpuinfo", "".join(map(cpu.format, range(3))))
    finding = check_cpu(machine.examination())
    assert finding.found == "AMD EPYC, 3 CPUs: AVX2, AVX-512, AVX-512 VNNI"
    assert finding.facts["fast_int8"]


def test_a_processor_without_vnni_is_named_and_no_fault(machine):
    machine.file("proc/cpuinfo", "processor : 0\nmodel name : Old\nflags : fpu sse2 avx2\n")
    finding = check_cpu(machine.examination())
    assert finding.status == "ok"
    assert "no fast INT8" in finding.found
    assert not finding.facts["fast_int8"]


def test_a_jetson_is_named_by_its_board(jetson):
    finding = check_cpu(jetson.examination())
    assert finding.found == (
        "NVIDIA Jetson AGX Orin Developer Kit, 12 CPUs: NEON, FP16, dot product"
    )


def test_a_machine_that_tells_nothing_is_unknown(machine):
    assert check_cpu(machine.examination()).found.startswith("unknown processor, 0 CPUs")


def test_a_pc_has_neither_jetpack_nor_power_mode(machine):
    examination = machine.examination()
    assert [*check_jetpack(examination), *check_power(examination)] == []


def test_jetpack_and_jetson_linux_are_told(jetson):
    (finding,) = check_jetpack(jetson.examination())
    assert (finding.status, finding.found) == ("ok", "JetPack 6.2, Jetson Linux 36.4.3")
    assert finding.facts == {"jetpack": "6.2", "linux": "36.4.3"}


def test_packages_that_were_removed_are_not_installed(jetson):
    assert jetson.examination().packages == {"bash": "5.1", "nvidia-jetpack": "6.2+b77"}


def test_without_the_jetpack_package_the_major_release_is_told(jetson):
    jetson.file("var/lib/dpkg/status", "Package: bash\nStatus: install ok installed\nVersion: 5\n")
    (finding,) = check_jetpack(jetson.examination())
    assert finding.found == "JetPack 6, Jetson Linux 36.4.3"


@pytest.mark.parametrize(
    "release", ["R35 (release), REVISION: 4.1", "R32 (release), REVISION: 7.1"]
)
def test_a_jetpack_that_is_too_old_is_a_problem(jetson, release):
    jetson.file("etc/nv_tegra_release", f"# {release}, GCID: 1\n")
    jetson.file("var/lib/dpkg/status")
    (finding,) = check_jetpack(jetson.examination())
    assert finding.status == "problem"
    assert "JetPack 6" in finding.fix


def test_a_container_on_a_jetson_need_not_know_the_release(machine):
    machine.file("proc/device-tree/model", "NVIDIA Jetson Orin Nano\0")
    (finding,) = check_jetpack(machine.examination())
    assert finding.status == "absent"
    assert "release unknown" in finding.found


def test_a_slow_power_mode_is_a_warning_with_the_command_for_a_faster(jetson):
    jetson.command("nvpmodel", "echo 'NV Power Mode: 30W'; echo 2")
    (finding,) = check_power(jetson.examination())
    assert finding.status == "warning"
    assert finding.found.startswith("mode 30W, clocks rise under load")
    assert finding.fix == "sudo nvpmodel -m 0"


@pytest.mark.parametrize("mode", ["MAXN", "MAXN_SUPER"])
def test_the_fastest_power_mode_is_fine(jetson, mode):
    jetson.command("nvpmodel", f"echo 'NV Power Mode: {mode}'; echo 0")
    jetson.gpu_clocks(lowest=1300500000, highest=1300500000)
    (finding,) = check_power(jetson.examination())
    assert (finding.status, finding.fix) == ("ok", None)
    assert finding.found == f"mode {mode}, clocks held at their maximum"


def test_without_the_command_the_file_tells_the_power_mode(jetson):
    jetson.file("var/lib/nvpmodel/status", "pmode:0002\nfmode:quiet\n")
    (finding,) = check_power(jetson.examination())
    assert finding.facts["mode"] == "30W"


def test_an_unknown_power_mode_is_no_fault(machine):
    machine.file("proc/device-tree/model", "NVIDIA Jetson Orin Nano\0")
    (finding,) = check_power(machine.examination())
    assert (finding.status, finding.found) == ("ok", "mode unknown, clocks unknown")
