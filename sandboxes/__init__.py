"""What we do: keeps, tasks, sandboxes, checkpoints, and the doors to them."""

from sandkeep.sandboxes.audit import verify_bundle
from sandkeep.sandboxes.background import Running
from sandkeep.sandboxes.execution import Result
from sandkeep.sandboxes.keep import Keep
from sandkeep.sandboxes.locks import Held
from sandkeep.sandboxes.restore import Restored
from sandkeep.sandboxes.task import Task

__all__ = ["Held", "Keep", "Restored", "Result", "Running", "Task", "verify_bundle"]
