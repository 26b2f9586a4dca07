"""kill -9 at 25 random moments by the clock, in float32 and in int8, every other one once more while it goes on.

It costs the steps since the last checkpoint, and not a bit of the result.
"""

import random

from killed import finished_equally

KILLS = 25


def test_killed_at_random_moments(trainings, straight):
    run, _changes = straight
    draw, lasts, kills = random.Random(1), trainings.seconds("timed"), 0
    for number in range(4 * KILLS):
        if kills == KILLS:
            break
        name, moment = f"moment-{number}", draw.uniform(0, lasts)
        if trainings.killed(name, seconds=moment):
            kills += 1
            if number % 2 and (trainings.room / name / "run.toml").is_file():
                trainings.killed(name, "--resume", seconds=lasts - moment)
        else:  # it had ended by then: trainings take less time than they did, and the next moments are to be earlier
            lasts = trainings.seconds(f"timed-{number}")
        finished_equally(trainings, name, run)
    assert kills == KILLS
