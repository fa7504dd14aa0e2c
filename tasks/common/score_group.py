"""`dualfocus score` of a group: one file with the answers to all of its tasks.

    dualfocus score --task df_pope --answers llava-v1.5-13b.jsonl

A group whose answers have other ids than its questions gives the offset of each task's ids:
`metadata: {dualfocus: {answer_ids: {df_pope_random: 10000000, ...}}}` in its YAML.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.tasks.common.score import (
    Metric,
    Scores,
    document_ids,
    host_results,
    load,
    read_answers,
    save_scores,
    score,
    score_replies,
    scores_table,
    shorten,
    task_manager,
)

if TYPE_CHECKING:
    from lmms_eval.api.task import ConfigurableTask


@dataclass(frozen=True)
class GroupScores:
    """The scores of a file of answers for a group and for each of its tasks.

    metrics: of the group, as the host takes them from its tasks. They have no error: the tasks may ask the
    same questions, so that their errors are not independent.
    """

    task: str
    version: str
    metrics: tuple[Metric, ...]
    tasks: tuple[Scores, ...]

    def markdown(self) -> str:
        """The scores as a table, the group's last, and below it what they were computed from."""
        table = scores_table(
            [*((scores.task, scores.metrics) for scores in self.tasks), (self.task, self.metrics)]
        )
        return "\n\n".join([table, *(f"{scores.task}\n{scores.sources()}" for scores in self.tasks)])

    def save(self, path: str | Path) -> None:
        """Write everything as JSON, with the versions of this package and of lmms-eval."""
        save_scores(asdict(self), path)


def score_any(name: str, answers: str | Path, include_path: str | None = None) -> Scores | GroupScores:
    """Score a file of answers with a task or a group, whichever has the name."""
    is_group = name in task_manager(include_path).all_groups
    return (score_group if is_group else score)(name, answers, include_path)


def score_group(group: str, answers: str | Path, include_path: str | None = None) -> GroupScores:
    """Score a file of answers (see `read_answers`) with all tasks of a group.

    UserError when an id is that of no task, or of more than one.
    """
    replies = read_answers(Path(answers))
    tree = load(group, include_path)
    settings, tasks = next(iter(tree)), dict(_tasks(tree))
    offsets = ((settings.config.get("metadata") or {}).get("dualfocus") or {}).get("answer_ids") or {}
    ids = {name: _answer_ids(task, name, offsets.get(name, 0)) for name, task in tasks.items()}
    _one_task_each(group, answers, replies, ids)
    own = {name: [replies.get(key) for key in keys] for name, keys in ids.items()}
    return GroupScores(
        task=group,
        version=str((settings.config.get("metadata") or {}).get("version")),
        metrics=tuple(_group_metrics(group, tree, tasks, own)),
        tasks=tuple(score_replies(name, task, answers, own[name]) for name, task in tasks.items()),
    )


def _tasks(tree: Mapping[Any, Any]) -> Iterator[tuple[str, ConfigurableTask]]:
    """Every task of the host's tree of groups, by name."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _tasks(value)
        else:
            yield name, value


def _answer_ids(task: ConfigurableTask, name: str, offset: int) -> list[str]:
    """The ids under which a task's answers come, in the order of its questions."""
    ids = document_ids(task.eval_docs_no_media, name)
    return [str(int(key) + offset) for key in ids] if offset else ids


def _one_task_each(
    group: str, answers: str | Path, replies: Mapping[str, str], ids: Mapping[str, Sequence[str]]
) -> None:
    """UserError unless each answer belongs to the one question of the one task that has its id."""
    counts = Counter(key for keys in ids.values() for key in keys)
    if unknown := [key for key in replies if key not in counts]:
        known = "; ".join(f"{name}{shorten(keys)}" for name, keys in ids.items())
        raise UserError(
            f"{answers} answers {len(unknown)} questions that {group} does not ask{shorten(unknown)}. It "
            f"asks {known}. Keep its own answers, under these ids."
        )
    if shared := [key for key in replies if counts[key] > 1]:
        raise UserError(
            f"Several tasks of {group} have a question {shared[0]}, so that its answer could be that of any: "
            f"score one by one {', '.join(ids)}."
        )


def _group_metrics(
    group: str,
    tree: Mapping[Any, Any],
    tasks: Mapping[str, ConfigurableTask],
    replies: Mapping[str, Sequence[str | None]],
) -> Iterator[Metric]:
    """The group's metrics, aggregated by the host itself."""
    from lmms_eval.evaluator_utils import consolidate_group_results

    results, versions = host_results(
        [(name, task, task.eval_docs_no_media, replies[name]) for name, task in tasks.items()]
    )
    results = consolidate_group_results(results, versions, tree)[0]
    total = sum(len(own) for own in replies.values())
    for item in next(iter(tree)).config["aggregate_metric_list"] or ():
        value = results[group].get(f"{item['metric']},none")
        if isinstance(value, (int, float)):
            yield Metric(item["metric"], float(value), None, total)
