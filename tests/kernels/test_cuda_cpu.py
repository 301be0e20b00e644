"""The CPU emulation itself, on the small kernels of tests/cuda_cpu/toys.cu: it keeps CUDA's rules,
and every check that it claims to make is seen to fire."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from kernels.launch import Grid, Kernel
from tests.cuda_cpu import build
from tests.cuda_cpu.emulation import (
    Conditional,
    EmulatedLauncher,
    EmulationError,
    Launched,
    Span,
)
from tests.kernels.toys import TOYS, ToyArguments, place

FOLDER = TOYS.parent
ORDERS: list[dict[str, Any]] = [
    {},
    {"order": "descending"},
    {"resident": 1},
    *({"seed": seed, "resident": 3} for seed in range(4)),
]
any_order = pytest.mark.parametrize("options", ORDERS, ids=str)


class Toy:
    """One toy kernel with its memory; ``run`` may be called again and goes on with it."""

    def __init__(self, name: str, *, words: int = 0, given: Any = (), n: int = 0, **options: Any):
        self.name = name
        self.given = np.ascontiguousarray(given, np.uint32)
        self.out = np.zeros(words, np.uint32)
        self.wide = np.zeros(1, np.uint64)
        self.n = n
        self.launcher = EmulatedLauncher(folder=FOLDER, **options)

    def run(self, grid: Grid = (1, 1, 1), threads: int = 32) -> Launched:
        addresses = [array.ctypes.data for array in (self.given, self.out, self.wide)]
        arguments = ToyArguments(*addresses, self.n)
        self.launcher.launch(Kernel("toys", self.name, threads), grid, arguments, stream=0)
        return self.launcher.launched[-1]


def refused(message: str, name: str, **options: Any) -> None:
    threads = options.pop("threads", 32)
    with pytest.raises(EmulationError, match=message):
        Toy(name, **{"words": 64, "given": np.arange(64)} | options).run(threads=threads)


@any_order
def test_every_thread_of_every_block_runs_once(options: dict[str, Any]) -> None:
    toy = Toy("number_threads", words=3 * 2 * 2 * 70, **options)
    toy.run((3, 2, 2), threads=70)
    np.testing.assert_array_equal(toy.out, np.arange(1, toy.out.size + 1))


@any_order
@pytest.mark.parametrize("threads", [1, 31, 33, 256, 1024])
def test_a_barrier_holds_until_all_have_written(threads: int, options: dict[str, Any]) -> None:
    given = np.arange(5 * threads)
    toy = Toy("reverse_block", words=given.size, given=given, **options)
    toy.run((5, 1, 1), threads)
    expected = given.reshape(5, threads)[:, ::-1].reshape(-1)
    np.testing.assert_array_equal(toy.out, expected)


def test_shared_memory_starts_with_a_pattern_in_every_block() -> None:
    toy = Toy("uninitialised_shared", words=8 * 32)
    toy.run((8, 1, 1))
    assert (toy.out == 0xCBCBCBCB).all()


def shuffled(values: np.ndarray) -> np.ndarray:
    """What the eight shuffles of the toy give, for warps [n, 32]."""
    lane = np.arange(32)
    sources = [
        (lane + 3) % 32,
        lane // 8 * 8 + 1,
        np.where(lane >= 5, lane - 5, lane),
        np.where(lane % 4 >= 1, lane - 1, lane),
        np.where(lane + 5 < 32, lane + 5, lane),
        np.where(lane % 4 + 1 < 4, lane + 1, lane),
        lane ^ 16,
        # Lanes of an earlier segment may be read, lanes of a later one not.
        np.where((lane ^ 5) < lane // 4 * 4 + 4, lane ^ 5, lane),
    ]
    return np.stack([values[:, source].reshape(-1) for source in sources])


@any_order
def test_shuffles_read_the_lanes_that_cuda_says(options: dict[str, Any]) -> None:
    given = np.random.default_rng(0).integers(0, 2**32, 96, np.uint32)
    toy = Toy("shuffles", words=8 * 96, given=given, **options)
    toy.run(threads=96)
    np.testing.assert_array_equal(toy.out.reshape(8, 96), shuffled(given.reshape(3, 32)))


@any_order
@pytest.mark.parametrize("ones", [(), (0, 3, 30), range(1, 32, 2), range(32)])
def test_halves_of_a_warp_vote_apart(ones: Any, options: dict[str, Any]) -> None:
    votes = np.zeros(32, np.uint32)
    votes[list(ones)] = 5
    toy = Toy("votes_of_halves", words=96, given=votes, **options)
    toy.run()
    for lane in range(32):
        mask = 0xAAAAAAAA if lane % 2 else 0x55555555
        ballot = sum(1 << other for other in ones if mask >> other & 1)
        found = toy.out[3 * lane : 3 * lane + 3].tolist()
        assert found == [ballot, ballot != 0, ballot == mask]


@any_order
def test_atomics_lose_nothing(options: dict[str, Any]) -> None:
    toy = Toy("atomics", words=5, **options)
    launched = toy.run((3, 1, 1), threads=70)
    threads = 210
    inc, add, last, others, first = toy.out.tolist()
    assert int(toy.wide[0]) == threads << 33
    assert inc == threads % 7  # 6 is followed by 0
    assert add == 2**32 - threads
    assert last + others == threads * (threads + 1) // 2
    assert 1 <= first <= threads
    assert launched.atomics == 5 * threads + threads - 1


@any_order
def test_the_last_block_sees_what_all_have_written(options: dict[str, Any]) -> None:
    given = np.random.default_rng(1).integers(0, 1000, 37)
    toy = Toy("last_block_sums", words=2 + 37, given=given, **options)
    for _ in range(3):  # the ticket wraps, so nothing needs a reset
        toy.out[1] = 0
        toy.run((37, 1, 1), threads=64)
        assert toy.out[0] == 0
        assert toy.out[1] == given.sum()


def test_the_same_seed_gives_the_same_order_and_others_differ() -> None:
    def arrivals(**options: Any) -> tuple[int, ...]:
        toy = Toy("order_of_arrival", words=129, **options)
        toy.run((4, 1, 1), threads=32)
        return tuple(toy.out[1:].tolist())

    found = [arrivals(seed=seed) for seed in (1, 1, 2, 3)]
    assert found[0] == found[1]
    assert len({*found, arrivals(), arrivals(order="descending")}) == 5
    assert all(sorted(order) == list(range(128)) for order in found)
    assert arrivals() == tuple(range(128))
    assert arrivals(order="descending") == tuple(range(127, -1, -1))


def first_arrivals(seed: int, grid: Grid, threads: int) -> int:
    toy = Toy("order_of_arrival", words=1 + 64, seed=seed, resident=1)
    toy.run(grid, threads)
    return int(toy.out[1])


def test_a_seed_decides_which_thread_and_which_block_comes_first() -> None:
    assert max(first_arrivals(seed, (1, 1, 1), 64) for seed in range(10)) > 8
    assert len({first_arrivals(seed, (64, 1, 1), 1) for seed in range(10)}) > 3


def test_random_order_shows_what_is_half_done() -> None:
    def seen(**options: Any) -> int:
        toy = Toy("two_writes", words=3, **options)
        toy.run(threads=2)
        return int(toy.out[2])

    assert seen() == seen(order="descending") == 1
    assert 2 in {seen(seed=seed) for seed in range(40)}


@pytest.mark.parametrize("name", ["many_atomics", "many_looks_and_writes"])
def test_looking_is_no_livelock_while_something_changes(name: str) -> None:
    toy = Toy(name, words=1, n=2_200_000)
    toy.run(threads=1)
    assert toy.out[0] == toy.n


@pytest.mark.parametrize("options", [{}, {"order": "descending"}, {"seed": 1}], ids=str)
def test_blocks_that_are_resident_together_may_wait_for_each_other(options: Any) -> None:
    toy = Toy("wait_for_next_block", words=4, resident=4, **options)
    toy.run((4, 1, 1), threads=1)
    assert toy.out.all()


def test_a_wait_for_a_block_that_cannot_start_is_a_livelock() -> None:
    toy = Toy("wait_for_next_block", words=4, resident=3)
    message = f"livelock: threads only look at memory, at {place('SPIN')}"
    with pytest.raises(EmulationError, match=message):
        toy.run((4, 1, 1), threads=1)


def test_every_half_becomes_the_float_that_numpy_says() -> None:
    toy = Toy("halves_to_floats", words=1 << 16)
    toy.run((64, 1, 1), threads=1024)
    found = toy.out.view(np.float32)
    expected = np.arange(1 << 16).astype(np.uint16).view(np.float16).astype(np.float32)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))


def test_floats_round_to_the_half_that_numpy_says() -> None:
    rng = np.random.default_rng(2)
    halves = np.arange(1 << 16).astype(np.uint16).view(np.float16).astype(np.float32)
    halves = halves[np.isfinite(halves)]
    with np.errstate(over="ignore"):
        neighbours = halves[1:] / 2 + halves[:-1] / 2  # exactly between two: ties go to even
    bits = rng.integers(0, 2**32, 70_000, np.uint32).view(np.float32)
    values = np.concatenate([halves, neighbours, np.nextafter(neighbours, 1e9), bits])
    values = np.resize(values, -(-values.size // 1024) * 1024).astype(np.float32)
    toy = Toy("floats_to_halves", words=values.size // 2, given=values.view(np.uint32))
    toy.run((values.size // 1024, 1, 1), threads=1024)
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)
    found = toy.out.view(np.float16)
    np.testing.assert_array_equal(found, expected)
    number = ~np.isnan(values)
    np.testing.assert_array_equal(found.view(np.uint16)[number], expected.view(np.uint16)[number])


def test_intrinsics_on_integers() -> None:
    values = [0, 1, 0x80000000, 0xFFFFFFFF, 0x00F00000]
    toy = Toy("intrinsics", words=20, given=values)
    toy.run(threads=5)
    expected = [
        [bits := value.bit_count(), 2 * bits, (value & -value).bit_length(), signed & 0xFFFFFFFF]
        for value in values
        for signed in [min(value - (value >> 31 << 32), 7)]
    ]
    assert toy.out.reshape(5, 4).tolist() == expected


def test_bytes_are_counted_at_every_access_to_global_memory() -> None:
    toy = Toy("traffic", words=64, given=np.arange(256))
    launched = toy.run(threads=64)
    assert launched.bytes_read == 64 * 16 + 8
    assert launched.bytes_written == 64 * 4 + 8
    assert launched.atomics == 1  # not those of shared memory


def covered(spans: list[Span]) -> set[int]:
    return {address for span in spans for address in range(span.start, span.stop)}


def test_it_is_known_which_bytes_a_launch_touched() -> None:
    toy = Toy("last_block_sums", words=2 + 37, given=np.arange(37))
    toy.run((37, 1, 1), threads=64)
    read, written = map(covered, toy.launcher.touched("toys"))
    given, out = toy.given.ctypes.data, toy.out.ctypes.data
    sums = set(range(out + 8, out + 4 * 39))
    assert (
        read == set(range(given, given + 4 * 37)) | sums
    )  # the last block reads what others wrote
    assert written == set(range(out, out + 4 * 39))  # the ticket by an atomic
    toy = Toy("number_threads", words=32)
    toy.run()
    read, written = map(covered, toy.launcher.touched("toys"))
    assert (read, len(written)) == (set(), 32 * 4)  # nothing is left of the launch before


def test_a_module_knows_its_kernels() -> None:
    launcher = EmulatedLauncher(folder=FOLDER)
    assert launcher.has("toys", "number_threads") and not launcher.has("toys", "number")


def test_conditionals_are_recorded_in_order() -> None:
    toy = Toy("set_conditionals", n=3)
    expected = (Conditional(1000, 0), Conditional(1001, 2), Conditional(1002, 4))
    assert toy.run(threads=1).conditionals == expected
    toy.n = 0
    assert toy.run(threads=1).conditionals == ()


def test_a_barrier_in_two_branches_is_refused() -> None:
    places = f"{place('SEVEN WAIT HERE')}, this thread at {place('OTHERS HERE')}"
    message = rf"divergent __syncthreads: others wait at {places} \[block 0,0,0, thread 7\]"
    refused(message, "divergent_barrier")


@any_order
def test_a_ballot_that_part_of_the_warp_skips_is_refused(options: dict[str, Any]) -> None:
    ballot, barrier = place("BALLOT OF SEVEN"), place("BARRIER OF OTHERS")
    message = rf"deadlock: lane \d waits in ballot at {ballot} with mask 0xffffffff, lane \d+ in "
    refused(rf"{message}__syncthreads at {barrier}", "divergent_ballot", **options)


@any_order
def test_different_operations_of_one_warp_are_refused(options: dict[str, Any]) -> None:
    syncwarp, any_ = place("SYNCWARP OF SEVEN"), place("ANY OF OTHERS")
    message = rf"divergent warp: .*({syncwarp}.*{any_}|{any_}.*{syncwarp})"
    refused(message, "different_operations", **options)


@any_order
def test_different_masks_of_one_operation_are_refused(options: dict[str, Any]) -> None:
    ballot = rf"ballot at {place('TWO OF ALL')} with mask 0xffffff"
    refused(
        f"(divergent warp|deadlock): lane .*{ballot}.*, lane .*{ballot}",
        "different_masks",
        **options,
    )


@any_order
def test_waiting_for_a_lane_that_has_exited_is_refused(options: dict[str, Any]) -> None:
    message = rf"__syncwarp at {place('NINE HAS LEFT')} with mask 0xffffffff "
    refused(
        message + "(names lanes that have|waits for lane 9, which has) exited",
        "lane_has_exited",
        **options,
    )
    refused(rf"all at {place('WITHOUT THE LAST')}.* exited", "lane_exits_later", **options)


def test_masks_that_do_not_fit_are_refused() -> None:
    refused(f"ballot at {place('ZERO IS NOT NAMED')}.*its own lane 0", "lane_not_in_its_mask")
    message = f"shuffle at {place('READS LANE 16')} with mask 0xffff reads lane 16, not in"
    refused(message, "shuffle_from_outside_the_mask")
    message = f"__syncwarp at {place('FULL MASK')}.* names lanes that do not exist"
    refused(message, "full_mask", threads=40)


def test_accesses_that_the_hardware_refuses_are_refused() -> None:
    refused(f"misaligned: read of 16 bytes from 0x.* at {place('ODD ADDRESS')}", "misaligned")
    toy = Toy("null_pointer", words=1)
    arguments = ToyArguments(None, None, None, 0)
    with pytest.raises(EmulationError, match=f"null pointer: write of 4 .*{place('TO NOTHING')}"):
        toy.launcher.launch(Kernel("toys", toy.name, 1), (1, 1, 1), arguments, stream=0)
    refused(f"shared memory, expected global: .*{place('SHARED')}", "reads_shared_as_global")
    refused(f"local memory, expected global: .*{place('LOCAL')}", "reads_local_as_global")


def test_constant_memory_that_is_written_is_refused() -> None:
    message = "constant read of memory that this launch has written"
    refused(f"{message}: read of 4 .*{place('NOT CONSTANT')}", "reads_what_it_wrote")
    message = "memory that this launch has read as constant is written"
    refused(f"{message}: write of 4 .*{place('OVERWRITES')}", "writes_what_it_read")


def test_limits_are_kept() -> None:
    refused("shared memory: 53248 bytes, more than the 49152", "too_much_shared")
    refused("more calls of cudaGraphSetConditional", "too_many_conditionals", threads=1)
    refused("1025 threads a block, expected 1 to 1024", "number_threads", threads=1025)
    refused("0 threads a block", "number_threads", threads=0)
    for grid in [(0, 1, 1), (1, 65536, 1), (1, 1, 65536), (2**31, 1, 1)]:
        with pytest.raises(EmulationError, match="number_threads: a grid that no GPU takes"):
            Toy("number_threads", words=1).run(grid, threads=1)
    with pytest.raises(EmulationError, match="more blocks than the emulation can run"):
        Toy("number_threads", words=1).run((2**31 - 1, 65535, 65535), threads=1)


def test_arguments_of_another_size_are_refused() -> None:
    launcher = EmulatedLauncher(folder=FOLDER)
    with pytest.raises(EmulationError, match=r"expected one parameter of 8 bytes.*takes 32"):
        launcher.launch(Kernel("toys", "full_mask", 32), (1, 1, 1), _Short(), stream=0)
    with pytest.raises(EmulationError, match=r"toys\.cu has no kernel nothing"):
        launcher.launch(Kernel("toys", "nothing", 32), (1, 1, 1), _Short(), stream=0)


class _Short(ctypes.Structure):
    _fields_ = (("pointer", ctypes.c_void_p),)


def test_a_launch_after_one_that_failed_works() -> None:
    refused("divergent", "divergent_barrier", threads=64)
    toy = Toy("reverse_block", words=64, given=np.arange(64))
    toy.run(threads=64)
    np.testing.assert_array_equal(toy.out, np.arange(64)[::-1])


def test_launches_of_several_threads_take_turns() -> None:
    given = np.arange(50 * 256)
    toys = [Toy("reverse_block", words=given.size, given=given, seed=seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda toy: toy.run((50, 1, 1), 256), toys))
    for toy in toys:
        np.testing.assert_array_equal(toy.out.reshape(50, 256), given.reshape(50, 256)[:, ::-1])


@any_order
def test_the_portable_switch_of_stacks_does_the_same(options: dict[str, Any]) -> None:
    given = np.arange(300)
    toy = Toy("reverse_block", words=300, given=given, variant=build.PORTABLE, **options)
    toy.run((3, 1, 1), threads=100)
    np.testing.assert_array_equal(toy.out.reshape(3, 100), given.reshape(3, 100)[:, ::-1])
    with pytest.raises(EmulationError, match="divergent"):
        Toy("divergent_barrier", variant=build.PORTABLE).run()
