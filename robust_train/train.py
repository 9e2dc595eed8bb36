"""Train a network to hold under attack. This page is the whole of training."""

from __future__ import annotations

from robust_train.engines.engine import Engine
from robust_train.judging import Judge
from robust_train.keyed import Key
from robust_train.nouns import at
from robust_train.records import Records
from robust_train.run import Run
from robust_train.saved import save


def train(run: Run, engine: Engine, judge: Judge, records: Records) -> None:
    """Do the updates that `run` still owes `engine`.

    The same page serves one process and 1,024 ranks; what differs is inside `engine`.
    A killed run calls it again and goes on from the last whole checkpoint.
    """
    batches = run.batches(engine.place, start=engine.updates)  # data, global batch and seed are all the run's

    # range first: no batch is drawn in vain
    for update, batch in zip(range(engine.updates, run.updates), batches, strict=False):
        key = Key(run.seed).at(update)
        objective = at(run.objective, update, run.updates)  # schedules in it become numbers
        for micro_batch in engine.micro_batches(batch):  # one, or as many as the device's memory asks for
            micro_batch = run.mix(micro_batch, key.rows(micro_batch.position))
            loss = objective(engine.network, micro_batch, key.rows(micro_batch.position), engine.state)
            engine.backward(loss)
        records.add(update, engine.step())

        if run.validate.due(update, run.updates):
            records.add(update, judge.validate())
        if run.validate.probe.due(update, run.updates):
            judge.probe(batch, records)
        if run.checkpoint.due(update, run.updates) or judge.improved or engine.leaving:
            save(run, engine, judge, records)
        engine.leave()  # where SIGTERM has come
