"""Why the agent ends: one class and one exit code each; nothing is printed or raised here.

What happens to single requests is in `client.py`: no answer and no silence of the control plane ends a running agent,
but for the classes below.
"""

from __future__ import annotations


class AgentError(Exception):
    """Ends the agent. The text is one line that says what to do."""

    exit_code = 1
    #: One line for `--help`.
    summary = "something unexpected went wrong (please report it)"


class BadConfig(AgentError):
    exit_code = 2
    summary = "a setting is missing, unknown or wrong"


class NotEnrolled(BadConfig):
    """The same to whoever starts the agent; a service is told whose enrolment is missing."""


class WrongUrl(AgentError):
    exit_code = 3
    summary = "the URL does not lead to an EdgeControl control plane"


class Unreachable(AgentError):
    exit_code = 4
    summary = "the control plane cannot be reached, and never could from here"


class BadToken(AgentError):
    exit_code = 5
    summary = "the token, or the enrolment token, is unknown, used, revoked or expired"


class NoAirflow(AgentError):
    exit_code = 6
    summary = "the task interpreter cannot run Airflow"


class NameTaken(AgentError):
    exit_code = 7
    summary = "another worker has this name"


class SessionReplaced(AgentError):
    """A newer agent has this identity: whatever ran here has been stopped, and the agent must not come back."""

    exit_code = 8
    summary = "a newer agent with the same token took over"


class AlreadyRunning(AgentError):
    exit_code = 9
    summary = "another agent uses this state directory"


class Outdated(AgentError):
    exit_code = 10
    summary = "the control plane no longer accepts agents of this version"


class BadStateDir(AgentError):
    exit_code = 11
    summary = "the state directory, or the place for the token file, cannot be used"


class NotRunning(AgentError):
    exit_code = 12
    summary = "no agent runs here, as far as `status` or `stop` can tell"


class Unwell(AgentError):
    exit_code = 13
    summary = "`doctor` found something that keeps the agent or its tasks from working"


class NotLetThrough(AgentError):
    """A proxy or a gateway answers, but this machine and it do not accept each other."""

    exit_code = 14
    summary = "a proxy, a gateway or a certificate does not let this machine through to the control plane"


class NoAnswer(AgentError):
    exit_code = 15
    summary = "the agent runs here, and does not answer the commands on its machine"


class NoService(AgentError):
    exit_code = 16
    summary = "the systemd unit could not be written, started or removed"


class Overruled(AgentError):
    exit_code = 17
    summary = "what a command waited for will not come: somebody wants something else meanwhile"


class Interrupted(AgentError):
    exit_code = 130
    summary = "interrupted: a second signal stopped the jobs, or Ctrl-C ended an enrolment"


#: Every way to end, in the order of their codes. 0 means: drained, stopped or left as asked; or enrolled.
ALL = (
    AgentError,
    BadConfig,
    WrongUrl,
    Unreachable,
    BadToken,
    NoAirflow,
    NameTaken,
    SessionReplaced,
    AlreadyRunning,
    Outdated,
    BadStateDir,
    NotRunning,
    Unwell,
    NotLetThrough,
    NoAnswer,
    NoService,
    Overruled,
    Interrupted,
)
