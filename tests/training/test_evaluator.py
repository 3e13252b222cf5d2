import contextlib
import dataclasses
import json
import signal

import chex

from jaxdet.training.evaluator import FILE
from tests.training import toy
from tests.training.test_train import CONFIG, interrupted, run, starts


def test_patience_ends_a_run_and_its_resumed_twin_after_the_same_step(
    tmp_path, capsys, caplog
):
    def metrics(ground_truth, results):
        return {"quality": next(qualities)}

    twins, config = [], dataclasses.replace(CONFIG, evaluate_every=1, patience=2)
    options = {"validation": toy.data_set(4), "metrics": metrics}
    for reads in (1000, 4 * 3):  # the second run is interrupted during its third step
        # Equal is not better: two in a row are not better than that of step 2.
        qualities, workdir = iter([0.2, 0.5, 0.5, 0.3, 0.4, 0.6]), tmp_path / str(reads)
        with contextlib.suppress(KeyboardInterrupt):
            data = interrupted(toy.data_set(), signal.SIGINT, reads=reads)
            run(workdir, data, config, **options)
        if reads == 4 * 3:  # a damaged line, and one of a step that is lost
            with (workdir / FILE).open("a") as file:
                file.write('{"step": 3, "qual\n{"step": 9, "quality": 1.0}\n')
        twins.append(run(workdir, config=config, **options))
    assert starts(workdir) == [0, 3] and twins[0].step == 4
    chex.assert_trees_all_equal(*twins)
    assert "is no evaluation, and left out" in caplog.text
    reason = "stopped early after step 4: quality was not better than 0.5, of step 2, "
    assert (workdir / "log.txt").read_text().count(reason + "in 2 evaluations") == 1
    assert f"nothing left to do, {reason}" in capsys.readouterr().out
    more = dataclasses.replace(config, patience=4, evaluate_every=3)
    assert run(workdir, config=more, **options).step == 8
    lines = map(json.loads, (workdir / FILE).read_text().splitlines())
    qualities = {line["step"]: line["quality"] for line in lines}
    assert qualities == {1: 0.2, 2: 0.5, 3: 0.5, 4: 0.3, 6: 0.4, 8: 0.6}
