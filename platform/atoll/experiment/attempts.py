"""Jobs that hold experiments: how they are named, which attempt is next, what their end means. Pure, without Ray."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from atoll import spec as sp
from atoll.errors import Problem, SpecError

if TYPE_CHECKING:
    from atoll.runtime.jobs import Job

__all__ = [
    "attempts_of",
    "exit_code_of",
    "find_job",
    "key_of",
    "may_go_on",
    "reached",
    "run_key",
    "split_id",
    "story_of",
]

_BUG, _REFUSED, _FAILED, _INTERRUPTED = 1, 2, 3, 130
#: Ray never started it: another attempt would wait for the same
_NEVER_STARTED = (
    "JOB_SUPERVISOR_ACTOR_START_TIMEOUT",
    "JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE",
    "RUNTIME_ENV_SETUP_FAILURE",
)
_REACHED = re.compile(r"step [\d,]+ of [\d,]+|stopped at server step [\d,]+")
_SAID = "atoll: "


# ---- names ----------------------------------------------------------------------------------------------------------


def key_of(spec: sp.Spec) -> str:
    """Name of the job of `spec`: its own name and eight characters of its digest; the same for the same experiment.

    A longer `stop`, another tracking store or other workers are the same experiment, which goes on.

    Purity: pure.
    """
    digest = sp.digest(spec)
    if spec.comparison is not None or spec.ensemble is not None:
        plain = sp.to_dict(spec)
        several = json.dumps([digest, plain["comparison"], plain["ensemble"]], sort_keys=True)
        digest = hashlib.sha256(several.encode()).hexdigest()
    slug = re.sub(r"[^A-Za-z0-9_.-]+", "-", spec.name)[:150].lstrip(".-") or "run"
    return f"{slug}-{digest[:8]}"


def split_id(job_id: str) -> tuple[str, int] | None:
    """(key, attempt) of a submission id; None for one that counts no attempts.

    Purity: pure.

    Example:
        >>> split_id("nightly-1f2e3d4c-a2")
        ('nightly-1f2e3d4c', 2)
    """
    found = re.fullmatch(r"(.+)-a(\d+)", job_id)
    return None if found is None else (found[1], int(found[2]))


def run_key(environment: Mapping[str, str]) -> str | None:
    """Inside a job: what all its attempts share, ATOLL_RUN_KEY or its submission id without the number; None elsewhere.

    Purity: pure.
    """
    if key := environment.get("ATOLL_RUN_KEY"):
        return key
    job = json.loads(environment.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    found = split_id((job.get("metadata") or {}).get("job_submission_id", ""))
    return None if found is None else found[0]


# ---- what there is --------------------------------------------------------------------------------------------------


def attempts_of(jobs: Sequence[Job], key: str) -> list[tuple[int, Job]]:
    """(attempt, job) of all jobs with this key, the newest last.

    Purity: pure.
    """
    named = [(split_id(job.id), job) for job in jobs]
    return sorted(((name[1], job) for name, job in named if name and name[0] == key), key=lambda one: one[0])


def find_job(jobs: Sequence[Job], name: str) -> Job:
    """The job with this submission id, or the last attempt with this key.

    Raises:
        SpecError: there is none.

    Purity: pure.
    """
    for job in jobs:
        if job.id == name:
            return job
    if attempts := attempts_of(jobs, name):
        return attempts[-1][1]
    known = ", ".join(job.id for job in jobs[-5:]) or "none yet"
    raise SpecError([Problem("job", repr(name), "a job of this cluster", hint=f"The last ones: {known}")])


# ---- what an end means ----------------------------------------------------------------------------------------------


def exit_code_of(job: Job) -> int:
    """What a command that waits for the job returns: 0 done, 2 refused, 3 failed or lost, 130 stopped, 1 a bug.

    Purity: pure.
    """
    if job.status == "SUCCEEDED":
        return 0
    if job.status == "STOPPED":
        return _INTERRUPTED
    return job.exit_code if job.exit_code in (_BUG, _REFUSED, _FAILED, _INTERRUPTED) else _FAILED


def may_go_on(job: Job) -> bool:
    """Whether another attempt that nobody asked for makes sense: it was lost on the way, and no person stopped it.

    Purity: pure.
    """
    if job.status != "FAILED" or job.error_type in _NEVER_STARTED:
        return False
    return exit_code_of(job) in (_FAILED, _INTERRUPTED)


def reached(log: str) -> str:
    """How far a run got, as the log of its job has it; "" where it does not say.

    Purity: pure.
    """
    found = _REACHED.findall(log)
    return found[-1] if found else ""


def story_of(job: Job) -> str:
    """One line on how the job stands: what atoll said last, where Ray passes that on, else Ray's own first line.

    Purity: pure.
    """
    lines = [line.strip() for line in job.message.splitlines() if line.strip()]
    said = [line.removeprefix(_SAID) for line in lines if line.startswith(_SAID)]
    return said[-1] if said else lines[0] if lines else ""
