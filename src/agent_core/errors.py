"""Everything that can go wrong, as one tree with one root.

Adapters translate what their vendors raise into these, once, with `raise … from`. The core decides
by class alone: what is *unavailable* may be tried again, what is *denied* or *refused* is final. No
text of an error holds a secret.
"""

__all__ = [
    "AgentAliveError",
    "AgentError",
    "AgentFaultError",
    "ArchiveRefusedError",
    "BatchRefusedError",
    "BinaryError",
    "BinaryUnavailableError",
    "ConfigAbsentError",
    "ConfigDeniedError",
    "ConfigError",
    "ConfigExpiredError",
    "ConfigMalformedError",
    "ConfigUnavailableError",
    "DeadlineError",
    "DiagnosticsDeniedError",
    "DiagnosticsError",
    "DiagnosticsUnavailableError",
    "DigestMismatchError",
    "HostUnavailableError",
    "JobAlreadyRunError",
    "JournalDamagedError",
    "JournalError",
    "JournalUnavailableError",
    "LogSinkDeniedError",
    "LogSinkError",
    "LogSinkUnavailableError",
    "MessageRefusedError",
    "NotifierDeniedError",
    "NotifierError",
    "NotifierUnavailableError",
    "RegistrationRefusedError",
    "RunnerError",
    "RunnerUnavailableError",
    "SettingsError",
    "SpoolError",
    "TerminatorDeniedError",
    "TerminatorError",
    "TerminatorUnavailableError",
]


class AgentError(Exception):
    """The root: anything that this project raises on purpose."""


class AgentFaultError(AgentError):
    """The agent itself is at fault: an exception that nothing expected."""


class AgentAliveError(AgentError):
    """Another agent works on this instance: it is left alone, and so is everything of its."""


class DeadlineError(AgentError):
    """Something took longer than its bound."""


class SettingsError(AgentError):
    """The settings do not add up; the text has a line for each fault, with its variable and the fix."""


# The job's config


class ConfigError(AgentError):
    """There is no job to run."""


class ConfigAbsentError(ConfigError):
    """The config is not there (yet): asked again until the standby deadline."""


class ConfigUnavailableError(ConfigError):
    """The place that holds the config did not answer: asked again until the standby deadline."""


class ConfigDeniedError(ConfigError):
    """The agent may not read the config: final."""


class ConfigMalformedError(ConfigError):
    """The config cannot be understood; the text names every fault and its path: final."""


class ConfigExpiredError(ConfigError):
    """The registration token in the config is too old for GitHub to take: final."""


class JobAlreadyRunError(ConfigError):
    """The journal says that this instance has run this job: it must not run again."""


# The runner's files


class BinaryError(AgentError):
    """The runner's files could not be put in place."""


class BinaryUnavailableError(BinaryError):
    """No store has the wanted version, or none answered."""


class DigestMismatchError(BinaryError):
    """The bytes are not the trusted ones; nothing of them was left in place."""


class ArchiveRefusedError(BinaryError):
    """The archive is damaged, or has a member that no runner archive has; nothing of it was left in place."""


# The runner's process


class RunnerError(AgentError):
    """The runner could not be worked with."""


class RegistrationRefusedError(RunnerError):
    """`config.sh` ended with a failure; the text has the runner's own words."""


class RunnerUnavailableError(RunnerError):
    """The runner could not be started, signalled or removed."""


class DiagnosticsError(AgentError):
    """The runner's own logs could not be uploaded."""


class DiagnosticsUnavailableError(DiagnosticsError):
    """The place did not answer: tried again."""


class DiagnosticsDeniedError(DiagnosticsError):
    """The agent may not write there: not tried again."""


class HostUnavailableError(AgentError):
    """The host could not be measured."""


# Delivery


class LogSinkError(AgentError):
    """Log events could not be delivered."""


class LogSinkUnavailableError(LogSinkError):
    """The sink is slow, throttled or gone: tried again."""


class LogSinkDeniedError(LogSinkError):
    """The agent may not write there: not tried again."""


class BatchRefusedError(LogSinkError):
    """The batch breaks a limit of the sink: trying again cannot help."""


class SpoolError(AgentError):
    """The spool took no more, or cannot give back what it took."""


class NotifierError(AgentError):
    """A message could not be sent."""


class NotifierUnavailableError(NotifierError):
    """The queue did not answer: tried again."""


class NotifierDeniedError(NotifierError):
    """The agent may not send there: not tried again."""


class MessageRefusedError(NotifierError):
    """The message breaks a limit of the queue: trying again cannot help."""


class TerminatorError(AgentError):
    """The instance could not be terminated."""


class TerminatorUnavailableError(TerminatorError):
    """The service did not answer: tried again."""


class TerminatorDeniedError(TerminatorError):
    """The agent may not terminate its instance."""


# The journal


class JournalError(AgentError):
    """The journal could not be used."""


class JournalUnavailableError(JournalError):
    """The journal could not be read or written."""


class JournalDamagedError(JournalError):
    """There is a journal, but it cannot be understood."""
