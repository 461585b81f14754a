"""The search on Optuna's study: our own sampler over an enumerated pool, any Optuna sampler beside it, storage, leases.

The only file that imports optuna. A trial's parameters are the indices of a space's values (integers keep the order
that tile sizes have); its outcome stands in its user attributes.
"""

from __future__ import annotations

import fcntl
import itertools
import logging
import math
import os
import socket
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from einsight.tuner.pool import Floats, Pool
from einsight.tuner.record import Measurement, Status, repair
from einsight.tuner.space import Space

optuna.logging.set_verbosity(optuna.logging.ERROR)
logging.getLogger("alembic").setLevel(logging.ERROR)

STATUS, REASON, WORKER, ALIVE, GRANTED = "status", "reason", "worker", "alive_s", "granted"
"""User attributes of a trial: how it ended, why, who claims it (host:process:number), when that one last gave a sign, and
whether no other claim stood against it, so that it is measured."""
NEEDS: Mapping[str, str] = {"gp": "torch", "cmaes": "cmaes"}  # packages that Optuna does not bring
SAMPLERS = ("pool", "random", "tpe", "gp", "cmaes", "qmc", "nsga2")
GRACE_S = 60.0  # a running trial whose worker gave no sign for this long goes back to the queue
SIGN_S = 5.0  # how often a worker gives a sign
WAIT_S = 0.02  # between two looks at claims that are not decided yet
WORST = 1.5  # a failure is told to Optuna's own samplers as this multiple of the worst time seen


class SearchError(ValueError):
    """A sampler or storage that cannot be used as asked."""


class PoolSampler(BaseSampler):  # type: ignore[misc]  # optuna is read untyped
    """Draws rows of a space by `Pool`; the study's other trials (of any worker) are its observations."""

    def __init__(self, space: Space, prior: Floats | None, seed: int) -> None:
        self._space = space
        self._pool = Pool(space.coordinates, prior, seed, space.features)
        self._told: set[int] = set()

    @property
    def expected_gain(self) -> float:
        """Expected reduction of log time by the configuration asked last."""
        return self._pool.expected_gain

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return distributions(self._space)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        claimed: list[int] = []
        drawn: list[int] = []
        for other in study.get_trials(deepcopy=False):
            row = row_of(self._space, other)
            if row is None or other.number in self._told or other.number == trial.number:
                continue
            if other.state in (TrialState.RUNNING, TrialState.WAITING):
                (claimed if WORKER in other.user_attrs else drawn).append(row)
            elif other.state is TrialState.COMPLETE:
                self._told.add(other.number)
                ok = other.user_attrs.get(STATUS, Status.OK.value) == Status.OK.value and (other.value or 0.0) > 0
                self._pool.observe(row, math.log(other.value) if ok and other.value is not None else None)
        row = self._pool.propose([*claimed, *drawn])
        if row is None:  # what was drawn and never claimed may be a dead worker's: `Search` does not count it as taken
            row = self._pool.propose(claimed)
        return _params(self._space, row or 0)  # None: all taken; whoever asked sees a duplicate

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        raise SearchError(f"{param_name}: not a parameter of space {self._space.name}")


class UniformSampler(BaseSampler):  # type: ignore[misc]
    """Rows in random order, each once: what a search must beat. (Optuna's own random sampler knows no valid space.)"""

    def __init__(self, space: Space, seed: int) -> None:
        self._space = space
        # In a circle: a row that another worker had claimed and then gave back is drawn again.
        self._order = itertools.cycle(np.random.default_rng(seed).permutation(len(space)).tolist())

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return distributions(self._space)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return _params(self._space, next(self._order))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        raise SearchError(f"{param_name}: not a parameter of space {self._space.name}")


def _params(space: Space, row: int) -> dict[str, int]:
    return {name: int(i) for name, i in zip(space.parameters, space.points[row], strict=True)}


def distributions(space: Space) -> dict[str, BaseDistribution]:
    return {name: IntDistribution(0, len(values) - 1) for name, values in space.parameters.items()}


def row_of(space: Space, trial: FrozenTrial) -> int | None:
    """The row that a trial's parameters name; None before they are drawn or where they name no valid configuration."""
    params = trial.params or trial.system_attrs.get("fixed_params", {})
    if set(params) != set(space.parameters):
        return None
    return space.row_of_point([params[name] for name in space.parameters])


def sampler(name: str, space: Space, prior: Floats | None, seed: int) -> BaseSampler:
    """Ours ("pool"), rows in random order ("random"), or one of Optuna's by its short name."""
    made: Mapping[str, Callable[[], BaseSampler]] = {
        "pool": lambda: PoolSampler(space, prior, seed),
        "random": lambda: UniformSampler(space, seed),
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed),
        "gp": lambda: optuna.samplers.GPSampler(seed=seed),
        "cmaes": lambda: optuna.samplers.CmaEsSampler(seed=seed),
        "qmc": lambda: optuna.samplers.QMCSampler(seed=seed),
        "nsga2": lambda: optuna.samplers.NSGAIISampler(seed=seed),
    }
    if name not in made:
        raise SearchError(f"--sampler: got {name!r}, expected one of {', '.join(SAMPLERS)}")
    if name in NEEDS and find_spec(NEEDS[name]) is None:  # Optuna itself only finds out in the middle of a search
        raise SearchError(f"--sampler {name}: Optuna's needs {NEEDS[name]}, which is not installed; pip install {NEEDS[name]}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return made[name]()


@dataclass(frozen=True, slots=True)
class Asked:
    """One configuration to measure: the trial that stands for it and the row."""

    trial: Trial
    row: int


@dataclass
class Search:
    """Ask for rows that no one has measured, tell what came out; one per process, any number on one study.

    skipped   counts asks of Optuna's own samplers that named an invalid or known configuration (ours never does)
    """

    study: Study
    space: Space
    worker: str = field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}:{threading.get_ident()}")
    skipped: dict[str, int] = field(default_factory=lambda: {"invalid": 0, "duplicate": 0})
    _known: dict[int, int] = field(default_factory=dict)  # trial number -> row: a trial's parameters never change

    def ask(self, budget: int | None = None) -> Asked | None:
        """The next configuration; None when the space is exhausted or all workers together have begun `budget` of them."""
        while True:
            taken = self._taken()
            if len(taken) >= len(self.space) or (budget is not None and len(taken) >= budget):
                return None
            trial = self.study.ask(distributions(self.space))
            row = self.space.row_of_point([trial.params[name] for name in self.space.parameters])
            if row is None or row in taken:
                self._replace(trial, row, taken)
            elif self._claim(trial, row, budget):
                return Asked(trial, row)

    def tell(self, asked: Asked, measured: Measurement) -> None:
        """One outcome. A failure is complete as well, with a constraint that says it is infeasible: samplers then learn
        from it, which Optuna's FAIL state would hide from them."""
        attributes = {STATUS: measured.status.value} | ({REASON: measured.reason} if measured.reason else {})
        for name, value in attributes.items():
            asked.trial.set_user_attr(name, value)
        ok = measured.status is Status.OK
        asked.trial.set_constraint("measured", -1.0 if ok else 1.0)
        self.study.tell(asked.trial, measured.time_s if ok else self._penalty())

    def give_back(self, asked: Asked) -> None:
        """Return an unfinished configuration to the queue (Ctrl-C, a machine that is lost)."""
        _requeue(self.study, self.space, asked.trial.number, asked.row, "given back")

    def add(self, row: int, measured: Measurement) -> None:
        """A measurement made before, so that it is never repeated."""
        value = measured.time_s if measured.status is Status.OK else self._penalty()
        attributes = {STATUS: measured.status.value, WORKER: self.worker}
        self.study.add_trial(
            create_trial(
                value=value, params=_params(self.space, row), distributions=distributions(self.space),
                user_attrs=attributes,
            )
        )  # fmt: skip

    def measured(self) -> dict[int, FrozenTrial]:
        """Completed trials by row, in the order in which they were asked."""
        found: dict[int, FrozenTrial] = {}
        for row, trial in self._rows(TrialState.COMPLETE):
            found.setdefault(row, trial)
        return found

    def best(self) -> tuple[dict[str, Any], float] | None:
        """The fastest configuration that any worker has measured, with its time in seconds."""
        done = ((row, t) for row, t in self.measured().items() if t.user_attrs.get(STATUS) == Status.OK.value)
        found = min(done, key=lambda one: one[1].value or math.inf, default=None)
        return None if found is None else (self.space.configuration(found[0]), float(found[1].value or math.inf))

    def reclaim(self, grace_s: float = GRACE_S) -> int:
        """Return to the queue what dead workers left running; how many."""
        count = 0
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if not _dead(trial, grace_s):
                continue
            count += _requeue(self.study, self.space, trial.number, row_of(self.space, trial), "its worker died")
        return count

    def begun(self) -> int:
        """Configurations that are measured or being measured, by any worker."""
        return len(self._taken())

    @contextmanager
    def alive(self, asked: Collection[Asked]) -> Iterator[None]:
        """While inside, a thread tells the storage now and then that these configurations' worker lives."""
        done = threading.Event()

        def sign() -> None:
            while not done.wait(SIGN_S):
                for one in list(asked):
                    # Told in this very moment, or the storage does not answer: should it stay so, the search itself says it.
                    with suppress(optuna.exceptions.UpdateFinishedTrialError, optuna.exceptions.StorageInternalError):
                        one.trial.set_user_attr(ALIVE, time.time())

        thread = threading.Thread(target=sign, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _taken(self) -> set[int]:
        """Rows that are measured or claimed. A trial that no one claims yet may be one that a kill left behind; should its
        worker live, its claim will see whoever took the row meanwhile."""
        found = self._rows(TrialState.COMPLETE, TrialState.RUNNING)
        return {row for row, t in found if t.state is TrialState.COMPLETE or WORKER in t.user_attrs}

    def _rows(self, *states: TrialState) -> Iterator[tuple[int, FrozenTrial]]:
        """The trials in these states that name a configuration, each with its row."""
        for trial in self.study.get_trials(deepcopy=False, states=states):
            row = self._known.get(trial.number)
            if row is None and (row := row_of(self.space, trial)) is not None:
                self._known[trial.number] = row
            if row is not None:
                yield row, trial

    def _claim(self, trial: Trial, row: int, budget: int | None) -> bool:
        """Whether this worker may measure the row, so that no row is measured twice and no budget exceeded.

        Every worker first writes its claim and then looks at the others': of two at once at least one sees the other. A claim
        yields to those granted and to older ones (lower numbers). It waits for younger ones that are not decided: they may
        have looked before this one was written.
        """
        trial.set_user_attr(ALIVE, time.time())
        trial.set_user_attr(WORKER, self.worker)
        while True:
            ahead, behind = self._claims(trial.number)
            if row in ahead or (budget is not None and len(ahead) >= budget):
                self.study.tell(trial, state=TrialState.FAIL)
                self.skipped["duplicate"] += row in ahead
                return False
            if row not in behind and (budget is None or len(ahead | behind) < budget):
                trial.set_user_attr(GRANTED, True)
                return True
            time.sleep(WAIT_S)
            self.reclaim()

    def _claims(self, number: int) -> tuple[set[int], set[int]]:
        """Rows of others' claims: granted or older than trial `number`; younger ones that are not decided."""
        ahead: set[int] = set()
        behind: set[int] = set()
        for row, other in self._rows(TrialState.COMPLETE, TrialState.RUNNING):
            decided = other.state is TrialState.COMPLETE or GRANTED in other.user_attrs
            if other.number != number and (decided or WORKER in other.user_attrs):
                (ahead if decided or other.number < number else behind).add(row)
        return ahead, behind

    def _replace(self, trial: Trial, row: int | None, taken: set[int]) -> None:
        """An ask that is invalid or known ends as FAIL; the nearest configuration that is neither is asked next.

        So a sampler that does not know the valid space is charged for measurements only.
        """
        self.skipped["invalid" if row is None else "duplicate"] += 1
        point = np.array([trial.params[name] for name in self.space.parameters])
        spans = np.array([max(len(values) - 1, 1) for values in self.space.parameters.values()])
        distance = np.abs((self.space.points - point) / spans).sum(1)
        distance[list(taken)] = np.inf
        self.study.tell(trial, state=TrialState.FAIL)
        if not isinstance(self.study.sampler, PoolSampler | UniformSampler):  # they repeat only what others took meanwhile
            self.study.enqueue_trial(_params(self.space, int(np.argmin(distance))))

    def _penalty(self) -> float:
        values = (t.value for t in self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
        return WORST * max((v for v in values if v is not None), default=1.0)


def _dead(trial: FrozenTrial, grace_s: float) -> bool:
    """Whether the worker of a running trial is gone: its process, when it ran on this host; else by its last sign."""
    host, _, rest = str(trial.user_attrs.get(WORKER, "")).partition(":")
    process = rest.partition(":")[0]
    if host == socket.gethostname() and process.isdigit() and not _runs(int(process)):
        return True
    begun = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
    return time.time() - float(trial.user_attrs.get(ALIVE, begun)) > grace_s


def _runs(process: int) -> bool:
    """Whether a process of this number exists on this host, whoever owns it."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it exists and is another user's
        return True
    return True


def _requeue(study: Study, space: Space, number: int, row: int | None, why: str) -> bool:
    """End a running trial as FAIL and enqueue its configuration again; False when another worker was faster."""
    try:
        study.tell(number, state=TrialState.FAIL)
    except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
        return False
    if row is not None:
        study.enqueue_trial(_params(space, row), user_attrs={REASON: why})
    return True


class JournalLock:
    """The lock of Optuna's journal file, safe against kills.

    The system's lock on a file beside the journal is released when its holder dies, which Optuna's own lock file is not;
    and whoever gets it first cuts off what a killed process left of a line: the next line would be glued to it, and no
    process could read the study again.
    """

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._file: IO[bytes] | None = None

    def acquire(self) -> bool:
        self._file = self._journal.with_name(self._journal.name + ".lock").open("ab")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        repair(self._journal)
        return True

    def release(self) -> None:
        if self._file is not None:
            self._file.close()


def open_study(name: str, storage: str | Path | None, chosen: BaseSampler) -> Study:
    """The study called `name`, new or existing. `storage`: None (in memory), a journal file, or a PostgreSQL URL."""
    kept: Any = None
    if storage is not None and "://" in str(storage):
        if not str(storage).startswith(("postgresql://", "postgresql+")):
            raise SearchError(f"--storage: got {str(storage).split('://')[0]}://..., expected a journal file or postgresql://")
        try:
            kept = optuna.storages.RDBStorage(str(storage).replace("postgresql://", "postgresql+psycopg2://", 1))
        except ImportError as error:
            raise SearchError("--storage: no psycopg2; install the extra `tune`: pip install 'einsight[tune]'") from error
        except Exception as error:
            first = str(error).strip().splitlines()[0]
            raise SearchError(f"--storage: the database does not answer: {first}") from None
    elif storage is not None:
        Path(storage).parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            try:
                backend = JournalFileBackend(str(storage), lock_obj=JournalLock(Path(storage)))
                kept = optuna.storages.JournalStorage(backend)
            except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
                raise SearchError(f"--storage: {storage} is no study journal ({type(error).__name__}: {error})") from None
    return optuna.create_study(study_name=name, storage=kept, sampler=chosen, direction="minimize", load_if_exists=True)

