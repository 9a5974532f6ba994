"""Owner of a namespace: the run whose episodes it holds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Owner:
    """Run that a namespace belongs to. A namespace has one owner for good, or none."""

    id: str
    """Id of the run, which its folder keeps: random, or that of a study's cell."""
    task: str
    """Name of the run's task."""
    seed: int
    """Seed of the run, from which the seeds of its episodes follow."""
