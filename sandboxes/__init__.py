"""What we do: keeps, tasks, sandboxes, checkpoints, and the doors to them."""

from typing import TYPE_CHECKING

from sandkeep.events import late

if TYPE_CHECKING:
    from sandkeep.sandboxes.aio import AsyncHeld, AsyncKeep, AsyncRunning, AsyncTask
    from sandkeep.sandboxes.audit import verify_bundle
    from sandkeep.sandboxes.background import Running
    from sandkeep.sandboxes.execution import Result
    from sandkeep.sandboxes.keep import Keep
    from sandkeep.sandboxes.locks import Held
    from sandkeep.sandboxes.restore import Restored
    from sandkeep.sandboxes.task import Task
else:
    __getattr__, __dir__ = late.names(
        __name__,
        """
        aio:AsyncHeld,AsyncKeep,AsyncRunning,AsyncTask audit:verify_bundle background:Running execution:Result
        keep:Keep locks:Held restore:Restored task:Task
        """,
    )

__all__ = [
    "AsyncHeld",
    "AsyncKeep",
    "AsyncRunning",
    "AsyncTask",
    "Held",
    "Keep",
    "Restored",
    "Result",
    "Running",
    "Task",
    "verify_bundle",
]
