"""What of a run is judged while it trains: validation, the best weights so far, and a watch for collapse."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from robust_train.engines.engine import Engine
from robust_train.evaluate.accuracy import tally
from robust_train.keyed import Key
from robust_train.models.network import Network
from robust_train.nouns import Attack, Batch
from robust_train.read.errors import ConfigError
from robust_train.records import Records
from robust_train.run import Run


@dataclass(frozen=True)
class Judged:
    """What is remembered of the judgements so far; checkpoints hold it."""

    best: float = -1.0  # the best validation accuracy so far: robust where an attack is named
    best_checkpoint: str | None = None  # the name of the one that holds it
    probed: float | None = None  # accuracy at the last probe
    collapses: int = 0  # probes that found a fall


class Judge:
    """Judges the network that an engine trains, over all ranks, in float32; nothing of the engine is changed.

    improved: whether the last validation was the best so far, and no checkpoint holds it yet.
    """

    def __init__(self, run: Run, engine: Engine) -> None:
        self.run, self.engine = run, engine
        self.judged = Judged()
        self.improved = False

    def validate(self) -> dict[str, float]:
        """Clean and robust accuracy on the validation images; `improved` where they are the best so far."""
        settings = self.run.validate
        found = self.evaluate(settings.attack, settings.images)
        score = found[f"accuracy/{settings.attack.label}" if settings.attack else "accuracy/clean"]
        if score > self.judged.best:
            self.judged, self.improved = replace(self.judged, best=score), True
        return found

    def evaluate(self, attack: Attack | None, images: int | None) -> dict[str, float]:
        """Accuracies of the averaged weights where they are kept, else of the weights, over all ranks."""
        batches = self.run.data.validation_batches(self.engine.place, self.run.validate.chunk, images)
        with self.engine.whole() as network:
            found = self.accuracies(network, batches, attack, Key(self.run.seed).of("validate"))
        if not found["validation/images"]:
            raise ConfigError("there are no validation images: name data.validation, or set validate.every=0")
        return found

    def probe(self, batch: Batch, records: Records) -> None:
        """Look for catastrophic overfitting, as Probe says it; recorded, and said aloud where it is found."""
        settings, update = self.run.validate.probe, self.engine.updates - 1
        attack = settings.attack
        assert attack is not None, "a probe that is due has an attack"
        chosen = batch[batch.position < settings.images]
        key = Key(self.run.seed).at(update).of("probe")
        with self.engine.whole(averaged=False) as network:
            found = self.accuracies(network, [chosen] if len(chosen) else [], attack, key)
        accuracy = found[f"accuracy/{attack.label}"]
        before = self.judged.probed
        collapsed = before is not None and before - accuracy > settings.fall
        self.judged = replace(self.judged, probed=accuracy, collapses=self.judged.collapses + collapsed)
        records.add(update, {f"probe/{attack.label}": accuracy, "probe/collapsed": float(collapsed)})
        if collapsed:
            records.say(
                f"update {update}: accuracy under {attack.label} on the batch's first images fell from "
                f"{before:.2f} to {accuracy:.2f} between two probes: catastrophic overfitting to the training attack? "
                "Give it more steps, more noise (n-fgsm) or a smaller eps; start= takes a checkpoint from before."
            )

    def accuracies(
        self, network: Network, batches: Iterable[Batch], attack: Attack | None, key: Key
    ) -> dict[str, float]:
        """Accuracies over the batches of all ranks; some ranks may have none, or fewer."""
        engine = self.engine
        sums = tally(network, batches, attack, key, engine.device, engine.dtype)
        count, clean, robust = engine.all_reduce(sums).tolist()
        found = {"accuracy/clean": clean / max(1.0, count), "validation/images": count}
        return found if attack is None else {**found, f"accuracy/{attack.label}": robust / max(1.0, count)}

    def keep(self, name: str) -> None:
        """Told that a checkpoint of that name is being written: it is the best one where the last validation was."""
        if self.improved:
            self.judged, self.improved = replace(self.judged, best_checkpoint=name), False
