"""kill -9 once before every change that a training makes to its run directory, between write and rename, too.

It costs the steps since the last checkpoint, and not a bit of the result.
"""

import pytest

from killed import finished_equally


@pytest.mark.parametrize("trainings", ["float32"], indirect=True)  # the same files are written in int8
def test_killed_before_any_change_to_its_directory(trainings, straight):
    run, changes = straight
    assert changes > 100
    for number in range(changes):
        process = trainings.begin(f"change-{number}", dies_before=number)
        process.join(120)
        assert process.exitcode == -9, f"change {number}: {trainings.said()}"
        finished_equally(trainings, f"change-{number}", run)
