"""What an earlier agent left on this instance, and how a successor finishes it."""

from collections.abc import Callable
from datetime import datetime, timedelta
from enum import Enum
from random import Random
from typing import Final

from attrs import asdict, frozen

from agent_core import __version__
from agent_core.deadline import within
from agent_core.ending import Ending, Outcome, conclude
from agent_core.errors import JournalDamagedError
from agent_core.events import JobInherited, Observer
from agent_core.life import AgentOptions, Life
from agent_core.messenger import Messenger
from agent_core.model import JournalRecord, StopReason, StopRequest
from agent_core.policy import CALL_SECONDS, JOURNAL_LOAD_SECONDS, JOURNAL_LOADS
from agent_core.ports import HostProbe, Ports
from agent_core.status import Observed
from agent_core.taking import look_for_job

__all__ = ["Death", "Remains", "adopt", "inspect", "judge", "observed_of", "reap", "without_journal"]

_SAME_BOOT: Final = timedelta(seconds=60)
"""The moment of a boot is reckoned from the wall clock, which may be set right after it."""


class Remains(Enum):
    """What the journal tells of an earlier life."""

    NONE = "there was none"
    FOREIGN = "it was another instance's: the machine image was made from a used one"
    ENDED = "it ended in order"
    JOBLESS = "it died before it had a job"
    UNFINISHED = "it died with a job"
    ALIVE = "it is still alive"


@frozen(kw_only=True)
class Death:
    """What is known of an agent's end, beside what its journal tells."""

    cause: str = ""
    """In words."""
    is_certain: bool = False
    """Whoever watched it says so."""
    is_in_order: bool = False
    """It came to its end, and the request to terminate was accepted."""
    interrupted_by: str | None = None
    """A signal that asks to stop, which came before there was anyone to take it."""

    @property
    def stop(self) -> StopRequest | None:
        """What asked the agent to stop, as far as only its death tells."""
        if self.interrupted_by is None:
            return None
        detail = f"interrupted by {self.interrupted_by}"
        return StopRequest(StopReason.INTERRUPTED, detail, by=self.interrupted_by)

    def at(self, when: str) -> str:
        """What to say of one who died then."""
        return f"the agent died {when}" + (f": {self.cause}" if self.cause else "")


_UNKNOWN: Final = Death()


def judge(record: JournalRecord | None, instance_id: str, host: HostProbe) -> Remains:
    """What there is to do after the life that the record tells of."""
    if record is None:
        return Remains.NONE
    alive = record.agent is not None and record.agent != host.own_process() and host.is_alive(record.agent)
    if alive and not record.terminated:
        return Remains.ALIVE
    if record.instance_id != instance_id:
        return Remains.FOREIGN
    if record.terminated and _is_told(record):
        return Remains.ENDED
    return Remains.JOBLESS if record.job_id is None else Remains.UNFINISHED


def _is_told(record: JournalRecord) -> bool:
    """Whether the queue waits for nothing."""
    return record.final is None or record.final.message_id in record.confirmed


async def inspect(life: Life) -> tuple[Remains, JournalRecord | None]:
    """Reads the journal; unless the earlier agent is alive, it is this life's from here on.

    Raises:
        JournalError: it cannot be read, or not be understood.
        DeadlineError: it does not answer.
    """
    instance_id = life.options.instance_id
    try:
        record = await _load(life)
    except JournalDamagedError:
        if instance_id:
            # What nobody understands is of use to nobody: how this life ends is.
            life.chronicle.allow()
        raise
    if not instance_id and record is not None and await _is_of_this_boot(life, record):
        # Nobody else tells who this is; what was written since the machine has started is about this one.
        instance_id = record.instance_id
        life.chronicle.note(instance_id=instance_id)
    remains = judge(record, instance_id, life.ports.host_probe)
    if remains is Remains.FOREIGN and record is not None:
        life.warn(f"the journal is of {record.instance_id}, not of this instance; it is not read on")
    if instance_id and remains is not Remains.ALIVE:
        life.chronicle.allow()
    return remains, record


async def _is_of_this_boot(life: Life, record: JournalRecord) -> bool:
    try:
        sample = await within(CALL_SECONDS, "measuring the host", life.ports.host_probe.sample())
    except Exception:  # noqa: BLE001 - a look at the host keeps nobody from the journal
        return False
    return record.booted_at is not None and abs(sample.booted_at - record.booted_at) < _SAME_BOOT


async def _load(life: Life) -> JournalRecord | None:
    """What the journal says; asked more than once, since without it a job would end unheard of."""
    for _ in range(JOURNAL_LOADS - 1):
        try:
            return await _load_once(life)
        except JournalDamagedError:
            raise
        except Exception as exc:  # noqa: BLE001 - asked again, and the last time raised
            life.warn(f"the journal cannot be read, tried again: {exc}")
    return await _load_once(life)


async def _load_once(life: Life) -> JournalRecord | None:
    return await within(JOURNAL_LOAD_SECONDS, "the journal", life.ports.journal.load())


def adopt(life: Life, record: JournalRecord) -> None:
    """Goes on with an earlier life's record as its successor."""
    life.chronicle.note(
        **asdict(record, recurse=False)
        | {"agent": life.ports.host_probe.own_process(), "agent_version": __version__}
    )
    if record.job_id is not None:
        life.emit(JobInherited(record.job_id, record.phase))


def observed_of(record: JournalRecord, death: Death = _UNKNOWN) -> Observed:
    """What a successor knows of how the earlier life went, and of what ended it."""
    return Observed(
        stop=record.stop or death.stop,
        job_ran=record.started_at is not None,
        job_result=record.job_result,
        error=death.at(f"in phase {record.phase}"),
        error_phase=record.phase,
    )


def without_journal(life: Life, exc: Exception, death: Death = _UNKNOWN) -> Observed:
    """What a successor knows of a life whose journal it cannot read; it takes over what that has spooled."""
    life.delivery.recover()
    return Observed(stop=death.stop, job_ran=None, error=death.at(f"and its journal is lost ({exc})"))


async def reap(
    options: AgentOptions,
    ports: Ports,
    *,
    now: Callable[[], datetime],
    rng: Random,
    observer: Observer,
    death: Death = _UNKNOWN,
) -> Outcome | None:
    """Finishes what a dead agent left: kills its runner, sends its final message, terminates.

    Safe to call again, at once, and beside a live agent. None: there is nothing to finish.
    """
    life = Life(options, ports, now=now, rng=rng, observer=observer)
    observed = Observed(stop=death.stop, error=death.at("before it wrote a journal"))
    try:
        remains, record = await inspect(life)
    except Exception as exc:  # noqa: BLE001 - without a journal there is still an instance to end
        if death.is_in_order:
            return None  # it has said how it ended: nobody who knows less may say otherwise
        life.fail(exc)
        observed = without_journal(life, exc, death)
    else:
        if remains in {Remains.ENDED, Remains.ALIVE}:
            return None
        untold = remains is Remains.UNFINISHED and record is not None and not _is_told(record)
        if death.is_in_order and not untold:
            return None  # whatever the journal says: a full disk may have kept it from the end
        if remains in {Remains.JOBLESS, Remains.UNFINISHED} and record is not None:
            observed = observed_of(record, death)
            adopt(life, record)
            if record.job_id is not None:
                life.delivery.recover()
                life.delivery.open(record.stream)
    if life.record.job_id is None:
        await look_for_job(life)
    # At once, or a successor of this one would tell of this one's death.
    conclude(life, observed)
    return await Ending(life, Messenger(life)).run(observed, {})
