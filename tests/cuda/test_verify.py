"""The self-check on the doubles: what it covers, that each part can fail, and when it runs."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from runtime import Cascade, bench, kernel_check, run, selfcheck, verify
from runtime.bundle import load_bundle, save_spec
from runtime.devices import GpuOptions
from runtime.errors import DeviceError, PlanError
from runtime.gpu_modes import Launcher
from runtime.gpu_slot import Slot
from runtime.schema import Golden
from tests.cuda import bundles
from tests.cuda_double.plans import write_plans

BATCH = 8
EXAMPLE = Path(__file__).parents[2] / "docs" / "formats" / "verify.json"


@pytest.fixture
def folder(gpu, tmp_path):
    """A bundle of three stages with plans and golden samples."""
    gpu()
    written = bundles.three_stages(tmp_path / "bundle")
    write_plans(written, (1, 4, BATCH))
    write_golden(written, offset=0.0)
    return written


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Keep verdicts in a folder of the test."""
    monkeypatch.setattr(selfcheck, "user_cache", lambda: tmp_path / "cache" / "cubins")
    return tmp_path / "cache" / "verified"


@pytest.fixture
def no_kernels(monkeypatch):
    """Leave out the kernels, which have tests of their own."""
    monkeypatch.setattr(selfcheck, "check_kernels", lambda device: iter(()))


@pytest.fixture
def runs(monkeypatch):
    """Count the self-checks."""
    counted = []
    original = selfcheck.run_checks

    def counting(opened):
        counted.append(opened)
        return original(opened)

    monkeypatch.setattr(selfcheck, "run_checks", counting)
    return counted


def write_golden(folder, *, offset):
    """Add golden samples; ``offset`` is what the last stage's logits are wrong by."""
    frames = bundles.random_frames(11, bundles.NV12["shape"], seed=5)
    with Cascade.load(folder, "cpu", batch=11) as cascade:
        logits = cascade.executor.stage_logits(frames)
        names = cascade.stage_names
    logits[-1][3, 2] += offset
    arrays = {f"logits/{name}/fp32": values for name, values in zip(names, logits, strict=True)}
    np.savez(folder / "golden.npz", frames=frames, **arrays)
    sha256 = hashlib.sha256((folder / "golden.npz").read_bytes()).hexdigest()
    spec = load_bundle(folder).spec
    save_spec(folder, spec.model_copy(update={"golden": Golden(file="golden.npz", sha256=sha256)}))


def load(folder, mode=None, **options):
    return Cascade.load(folder, "cuda", batch=BATCH, gpu=GpuOptions(mode=mode, **options))


def invoke(folder, *options):
    arguments = [folder, "--batch", BATCH, *options]
    return CliRunner().invoke(verify.main, list(map(str, arguments)))


def test_a_kernel_that_fails_refuses_the_gpu(folder, cache, monkeypatch):
    wrong = kernel_check.KernelCheck("gather_4", 3, 80)
    monkeypatch.setattr(selfcheck, "check_kernels", lambda device: iter([wrong]))
    with pytest.raises(DeviceError, match=r"kernel gather_4: wrong of 80: 3, allowed 0\. Report"):
        load(folder)
    assert not cache.exists()


# Plans


def test_a_plan_off_its_golden_samples_is_refused_with_the_number(folder, cache, no_kernels):
    write_golden(folder, offset=0.5)
    with pytest.raises(PlanError, match=r"plan large\.fp32: golden logits differ by 0\.5, allow"):
        load(folder)
    assert not cache.exists()
    result = invoke(folder)
    assert result.exit_code == 1
    assert "FAIL plan large.fp32: golden logits differ by 0.5, allowed 0.01" in result.output
    assert "1 failed" in result.output


def test_all_golden_samples_are_compared_whatever_the_batch(folder, cache, no_kernels):
    write_golden(folder, offset=0.5)
    with pytest.raises(PlanError, match="large"):
        Cascade.load(folder, "cuda", batch=1)


# Launch modes


def only_the_first_stage(executor, slot):
    """Enqueue a batch as if no gate sent anything on."""
    work = slot.works[0]
    work.enqueue_feed(slot.stream)
    work.run_rows(slot.rows, slot.stream)
    work.enqueue_decision(slot.stream)


def test_graph_that_answers_wrongly_is_not_used(folder, cache, no_kernels, monkeypatch):
    monkeypatch.setattr(Launcher, "_enqueue_graph", only_the_first_stage)
    with load(folder) as cascade:
        assert cascade.executor.mode == "host"
        reason = cascade.executor.mode_reason
    assert reason.startswith("the self-check failed: mode graph: wrong of 14 answers: ")
    with pytest.raises(DeviceError, match=r"mode graph: wrong of 14 .* Use another mode"):
        load(folder, "graph")
    load(folder, "padded").close()


def test_padded_that_answers_wrongly_leaves_the_others(folder, cache, no_kernels, monkeypatch):
    monkeypatch.setattr(Launcher, "_enqueue_padded", only_the_first_stage)
    with pytest.raises(DeviceError, match="mode padded: wrong of 14"):
        load(folder, "padded")
    with load(folder) as cascade:
        assert cascade.executor.mode == "graph"


def swapped(answers):
    return tuple(np.concatenate([array[1::-1], array[2:]]) for array in answers)


def last_lost(answers):
    label, confidence, stage = (array.copy() for array in answers)
    label[-1] = stage[-1] = 99
    return label, confidence, stage


def label_beyond_all(answers):
    label, confidence, stage = (array.copy() for array in answers)
    label[-1] = 99
    return label, confidence, stage


def later_stage(answers):
    label, confidence, stage = answers
    return label, confidence, stage + 1


@pytest.mark.parametrize("fault", [swapped, last_lost, label_beyond_all, later_stage])
def test_host_that_answers_wrongly_refuses_the_gpu(fault, folder, cache, no_kernels, monkeypatch):
    original = Slot.answers
    monkeypatch.setattr(Slot, "answers", lambda slot: fault(original(slot)))
    with pytest.raises(DeviceError, match=r"self-check failed: mode host: wrong of 14 answers"):
        load(folder)


def test_an_answer_of_another_row_is_seen_though_its_stage_is_right(
    folder, cache, no_kernels, monkeypatch
):
    original = Slot.answers

    def shifted(slot):
        label, confidence, stage = original(slot)
        return (np.roll(label, 1), confidence, stage)

    monkeypatch.setattr(Slot, "answers", shifted)
    with pytest.raises(DeviceError, match="mode host"):
        load(folder)


def test_a_driver_without_conditional_nodes_has_no_graph_to_check(gpu, tmp_path, no_kernels):
    gpu(driver=(12, 2))
    folder = bundles.two_stages(tmp_path / "bundle")
    write_plans(folder, (1, BATCH))
    result = invoke(folder)
    assert result.exit_code == 0, result.output
    assert "mode graph: not here: conditional nodes need a driver of CUDA 12.4" in result.output
    assert "no golden samples, so plans are not checked" in result.output
    assert "0 failed" in result.output


# When it runs


def test_it_runs_once_for_plans_driver_gpu_and_kernels(
    folder, cache, no_kernels, runs, gpu, monkeypatch
):
    load(folder).close()
    load(folder, "host").close()
    assert len(runs) == 1
    (kept,) = cache.iterdir()
    assert json.loads(kept.read_text())["failed_modes"] == {}
    gpu(driver=(12, 9))
    write_plans(folder, (1, 4, BATCH))
    load(folder).close()
    assert len(runs) == 2
    gpu(name="another (double)")
    write_plans(folder, (1, 4, BATCH))
    load(folder).close()
    assert len(runs) == 3
    write_plans(folder, (1, BATCH))  # newer, so they are taken
    load(folder).close()
    assert len(runs) == 4
    sources = functools.partial(changed_source, selfcheck.load_source)
    monkeypatch.setattr(selfcheck, "load_source", sources)
    load(folder).close()
    assert len(runs) == 5
    load(folder).close()
    assert len(runs) == 5


def changed_source(load_source, module):
    source = load_source(module)
    return source._replace(text=source.text + "//") if module == "gate" else source


def test_a_mode_that_failed_stays_off_without_a_new_check(
    folder, cache, no_kernels, runs, monkeypatch
):
    with monkeypatch.context() as spoilt:
        spoilt.setattr(Launcher, "_enqueue_graph", only_the_first_stage)
        load(folder).close()
    with load(folder) as cascade:
        assert cascade.executor.mode == "host"
    assert len(runs) == 1


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"format": "tinysaver.verified/9"}'])
def test_a_broken_verdict_is_made_anew(content, folder, cache, no_kernels, runs):
    load(folder).close()
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(content)
    load(folder).close()
    assert len(runs) == 2
    assert kept.read_bytes() == whole


def test_where_nothing_can_be_kept_it_runs_each_time(
    folder, tmp_path, no_kernels, runs, monkeypatch
):
    (tmp_path / "file").write_bytes(b"")
    for place in (tmp_path / "file" / "below" / "cubins", None):
        monkeypatch.setattr(selfcheck, "user_cache", lambda place=place: place)
        load(folder).close()
        load(folder).close()
    assert len(runs) == 4


def test_without_verify_nothing_is_checked(folder, cache, runs, tmp_path):
    load(folder, verify=False).close()
    frames = bundles.random_frames(5, bundles.NV12["shape"])
    np.savez(tmp_path / "data.npz", images=frames)
    common = ["--bundle", folder, "--device", "cuda", "--batch", BATCH, "--no-verify"]
    measured = ["--data", tmp_path / "data.npz", "--quick"]
    for program, arguments in ((bench, measured), (run, [tmp_path / "data.npz"])):
        result = CliRunner().invoke(program.main, list(map(str, [*common, *arguments])))
        assert result.exit_code == 0, result.output
    assert runs == []
    assert not cache.exists()


# The program


def test_the_program_shows_every_check_and_says_that_it_is_an_emulation(folder):
    result = invoke(folder)
    assert result.exit_code == 0, result.output
    assert "EMULATION: no GPU has run" in result.output
    for text in ("kernel gate_max_softmax_fp32_x4", "plan small.fp32", "mode graph"):
        assert f"ok   {text}" in result.output
    assert "0 failed" in result.output


def test_json_is_the_documented_format(folder, no_kernels):
    result = invoke(folder, "--json")
    report, example = json.loads(result.stdout), json.loads(EXAMPLE.read_text())
    assert list(report) == list(example)
    assert list(report["checks"][0]) == list(example["checks"][0])
    assert {check["name"] for check in report["checks"]} == {
        *("small.fp32", "middle.fp32", "large.fp32"),
        *("host", "padded", "graph"),
    }
    assert (report["failed"], report["emulated"]) == (0, True)


def test_json_of_a_plan_that_gives_nan_is_valid(folder, no_kernels):
    write_golden(folder, offset=np.nan)
    result = invoke(folder, "--json")
    assert result.exit_code == 1
    (failed,) = (c for c in json.loads(result.stdout)["checks"] if not c["passed"])
    assert (failed["name"], failed["worst"]) == ("large.fp32", None)


def test_layers_of_every_plan_are_written(folder, tmp_path, no_kernels):
    result = invoke(folder, "--layers", tmp_path / "layers.json")
    assert result.exit_code == 0, result.output
    layers = json.loads((tmp_path / "layers.json").read_text())
    assert list(layers) == ["small.fp32", "middle.fp32", "large.fp32"]
    assert layers["small.fp32"]["Bindings"] == ["input", "logits", "features"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--device", "cpu"], "--device: expected cuda or cuda:1, got 'cpu'"),
        (["--device", "cuda:7"], "the NVIDIA driver reports 1 GPU"),
        (["--forms", "fp64/fp32"], "--forms: expected one of fp32"),
    ],
)
def test_bad_arguments_are_refused_in_one_message(options, expected, folder):
    result = invoke(folder, *options)
    assert result.exit_code == 1
    assert expected in result.output
    assert "Traceback" not in result.output
