"""Submit, stream and close, from one thread and from several."""

import threading
import weakref

import numpy as np
import pytest

from runtime.cascade import Cascade
from runtime.errors import ClosedError


def load(folder, **options):
    return Cascade.load(folder, threads=1, **options)


def test_submit_and_stream_give_the_results_in_order(make_bundle, random_frames):
    batches = [random_frames(n, seed=n) for n in (5, 1, 40, 0, 7)]
    with load(make_bundle("echo", "negated", thresholds=[0.9]), batch=16) as cascade:
        expected = [cascade.run(frames) for frames in batches]
        pending = [cascade.submit(frames) for frames in batches]
        assert all(item.done() for item in pending)
        streamed = list(cascade.stream(iter(batches)))
        for results in ([item.result() for item in pending], streamed):
            assert [len(r) for r in results] == [5, 1, 40, 0, 7]
            for found, right in zip(results, expected, strict=True):
                assert found.label.tolist() == right.label.tolist()
                assert found.stage.tolist() == right.stage.tolist()


def test_stream_takes_batches_only_as_results_are_asked_for(make_bundle, random_frames):
    taken = []

    def batches():
        for number in range(10):
            taken.append(number)
            yield random_frames(2, seed=number)

    with load(make_bundle("echo", "negated")) as cascade:
        stream = cascade.stream(batches())
        next(stream)
        assert len(taken) <= 2
        assert len(list(stream)) == 9


def test_stream_of_nothing_gives_nothing(make_bundle):
    with load(make_bundle("echo", "negated")) as cascade:
        assert list(cascade.stream([])) == []


def test_threads_may_call_at_once_and_each_gets_its_own_answers(make_bundle, random_frames):
    inputs = [random_frames(23 + n, seed=n) for n in range(6)]
    with load(make_bundle("echo", "negated", "rows", thresholds=[0.95, 0.9]), batch=8) as cascade:
        expected = [cascade.run(frames) for frames in inputs]
        wrong = []

        def work(number):
            for _ in range(20):
                found = cascade.run(inputs[number])
                same = found.label.tolist() == expected[number].label.tolist()
                same &= found.confidence.tolist() == expected[number].confidence.tolist()
                wrong.extend([] if same else [number])

        threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def close(cascade):
    cascade.close()


def change_thresholds(cascade):
    cascade.thresholds = [0.0]


@pytest.mark.parametrize("change", [close, change_thresholds])
def test_a_batch_under_way_is_finished_before_the_cascade_changes(make_bundle, change):
    frames = np.zeros((4, 2, 2, 1), np.uint8)
    with load(make_bundle("echo", "negated", thresholds=[0.5]), batch=2) as cascade:
        execute, started, go_on = cascade.executor.execute, threading.Event(), threading.Event()

        def slow(*arguments, **options):
            started.set()
            assert go_on.wait(10)
            execute(*arguments, **options)

        cascade.executor.execute = slow
        answers = []
        runner = threading.Thread(target=lambda: answers.append(cascade.run(frames)))
        changer = threading.Thread(target=change, args=(cascade,))
        runner.start()
        assert started.wait(10)
        changer.start()
        changer.join(0.05)
        waited = changer.is_alive()
        go_on.set()
        runner.join()
        changer.join()
    assert waited
    assert answers[0].stage.tolist() == [1, 1, 1, 1]


def test_close_may_be_called_again_and_then_every_call_is_refused(make_bundle, random_frames):
    cascade = load(make_bundle("echo", "negated"))
    cascade.close()
    cascade.close()
    calls = [
        lambda: cascade.run(random_frames(3)),
        lambda: cascade.run(random_frames(0)),
        lambda: cascade.submit(random_frames(3)),
        lambda: next(cascade.stream([random_frames(3)])),
        cascade.check_golden,
    ]
    for call in calls:
        with pytest.raises(ClosedError, match=r"closed\. Load it again"):
            call()
    assert cascade.executor.stages == []


def test_leaving_the_block_closes_and_lets_the_error_through(make_bundle, random_frames):
    with pytest.raises(ZeroDivisionError), load(make_bundle("echo", "negated")) as cascade:
        raise ZeroDivisionError
    with pytest.raises(ClosedError):
        cascade.run(random_frames(1))


def test_close_frees_the_buffers_while_the_cascade_object_lives(make_bundle):
    cascade = Cascade.load(make_bundle("echo", "negated"))
    buffers = [
        weakref.ref(array) for stage in cascade.executor.stages for array in stage.inputs.values()
    ]
    cascade.close()
    assert [buffer() for buffer in buffers] == [None, None]
