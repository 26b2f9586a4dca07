"""kill -9 at 25 random moments by the clock, in float32 and in int8, every other one once more while it goes on.

It costs the steps since the last checkpoint, and not a bit of the result.
"""

from killed import finished_equally, moments


def test_killed_at_random_moments(trainings, straight):
    run, _changes = straight
    lasts = trainings.seconds()
    still_ran = 0
    for number, moment in enumerate(moments(seed=1, count=25, within=lasts)):
        name = f"moment-{number}"
        still_ran += trainings.killed(name, seconds=moment)
        if number % 2 and (trainings.room / name / "run.toml").is_file():
            trainings.killed(name, "--resume", seconds=lasts - moment)
        finished_equally(trainings, name, run)
    assert still_ran > 12, "most were to be killed while they ran"
