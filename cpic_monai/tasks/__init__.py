"""What is predicted, where it is not quantiles of a measured number: a class, or the hazard of an event.

A task (:class:`Task`) says everything that depends on it: the head's loss, what the closed-form recipe's ridge
regresses on, what the outputs mean, and how they are scored. Quantiles, the default of ``configs/train.json``, need
none of it.
"""

from cpic_monai.tasks.evaluation import TaskEvaluation, read_task_predictions
from cpic_monai.tasks.recipe import LogitCPICNet, TaskRecipe, WorkingRidge
from cpic_monai.tasks.task import ClassTask, SurvivalTask, Task

__all__ = [
    "ClassTask",
    "LogitCPICNet",
    "SurvivalTask",
    "Task",
    "TaskEvaluation",
    "TaskRecipe",
    "WorkingRidge",
    "read_task_predictions",
]
