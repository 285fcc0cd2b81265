from tests.child import assert_runs


def test_runs_on_the_cpu():
    assert "done: " in assert_runs("from benchmarks.small import main; main('cpu')")
