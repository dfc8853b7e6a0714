"""The vocabulary of events: every name, what it means, and its fields. `docs/events.md` is generated from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class EventType:
    """One kind of event: what it means and which fields it carries beside those in `COMMON`."""

    meaning: str
    fields: Mapping[str, str] = field(default_factory=dict)
    level: str = "info"


# Every event may carry these.
COMMON = {
    "ts": "time in UTC, ISO 8601 with milliseconds",
    "level": "debug, info, warning or error",
    "event": "the name",
    "job": "the job's id, where the event concerns one",
    "attempt": "which attempt of the job, from 1",
}

_PROBLEM = {
    "what": "what is wrong, one sentence",
    "where": "the file, line or key",
    "remedy": "what to do next",
}
_FILE = {"path": "the file or folder"}
_CHILD = {"child": "`valkey` or `worker`", "pid": "its process id"}

EVENTS: dict[str, EventType] = {
    # the service
    "daemon.started": EventType(
        "The daemon serves its home.",
        {
            "version": "of qlorad",
            "home": "QLORAD_HOME",
            "pid": "of the daemon",
            "jobs": "unfinished jobs found on disk",
        },
    ),
    "daemon.stopping": EventType("The daemon was asked to stop.", {"signal": "which signal asked"}),
    "daemon.stopped": EventType("Everything has ended.", {"seconds": "from the request to the end"}),
    "setting.unknown": EventType(
        "An environment variable looks like a setting but is none.",
        {"name": "of the variable", "nearest": "the setting that was probably meant"},
        "warning",
    ),
    "child.started": EventType("A child process was started.", _CHILD),
    "child.exited": EventType(
        "A child process ended.", _CHILD | {"code": "exit code; -N for signal N", "seconds": "it ran"}
    ),
    "child.restarting": EventType(
        "A child process ended unasked and will be started again.",
        {"child": "which", "delay": "seconds until then", "restarts": "in a row"},
        "warning",
    ),
    "child.killed": EventType(
        "A child process did not end in time and was killed.", _CHILD | {"seconds": "it was given"}, "warning"
    ),
    "child.hung": EventType(
        "A child process lives and does nothing; it is killed and started again.", _CHILD, "warning"
    ),
    "child.output": EventType("A child process printed a line.", {"child": "which", "line": "the text"}, "debug"),
    "queue.unreachable": EventType(
        "Redis does not answer.", {"reason": "what is wrong, without its address"}, "warning"
    ),
    "queue.damaged": EventType(
        "The embedded server could not read its file and starts empty; the run folders say what is to be done.",
        _FILE | {"moved_to": "where it lies now"},
        "warning",
    ),
    "queue.reachable": EventType("Redis answers again.", {"seconds": "it did not"}),
    "state.reconciled": EventType(
        "Disk, Redis and the live processes did not agree, and it was put right.",
        {
            "found": "what did not fit",
            "subject": "a name in Redis, a job's id or a process id",
            "answer": "what was done",
        },
        "warning",
    ),
    "run.upgraded": EventType(
        "A run folder that an older qlorad had made was brought up to the format of this one.",
        {"from": "its format before", "to": "its format now"},
    ),
    "run.newer": EventType(
        "A run folder was made by a newer qlorad. It stays as it is, and its job waits for that version.",
        {"path": "the run folder", "what": "what shows it"},
        "warning",
    ),
    "metrics.serving": EventType("Prometheus can ask how the service stands.", {"url": "where"}),
    "metrics.failed": EventType("Metrics cannot be served; training is not harmed.", _PROBLEM, "warning"),
    "notify.sent": EventType("A message about a job was sent.", {"kind": "of what", "to": "names of targets"}),
    "notify.failed": EventType(
        "A message about a job could not be sent, however often it was tried; the job is not harmed.",
        {"kind": "of what", "to": "names of targets; none where it is not known whom to tell", "reason": "why not"},
        "warning",
    ),
    "upkeep.failed": EventType(
        "Something that keeps the home in order could not be done; training is not harmed.",
        {"doing": "what", "reason": "why not"},
        "warning",
    ),
    "rejected.trimmed": EventType(
        "The oldest of what was rejected was deleted, so that the newest rejections stay readable.",
        {"path": "jobs/rejected", "count": "files and folders that were deleted", "kept": "rejections that stay"},
    ),
    "library.log": EventType("A library logged something.", {"logger": "which", "message": "the text"}, "debug"),
    "internal.error": EventType(
        "A bug of ours; the daemon goes on.", {"doing": "what was being done", "error": "type and text"}, "error"
    ),
    # the watched folder and requests
    "inbox.watching": EventType("The watched folder is watched (again).", _FILE),
    "inbox.lost": EventType("The watched folder cannot be read.", _FILE | {"reason": "why"}, "warning"),
    "file.taken": EventType("A settled file or folder was claimed from the watched folder.", _FILE),
    "file.rejected": EventType(
        "A file or folder is not a valid job and was moved to rejected/.",
        _FILE | _PROBLEM | {"moved_to": "where it lies now"},
        "warning",
    ),
    "request.received": EventType("A client asks for something.", {"request": "its key", "kind": "submit or cancel"}),
    "request.answered": EventType(
        "A client's request was answered.", {"request": "its key", "ok": "whether it was done", "what": "the answer"}
    ),
    # a job
    "job.accepted": EventType(
        "The job is on disk and will not be lost.",
        {
            "name": "of the job",
            "model": "as the job names it",
            "source": "the dropped file, or the client's request",
            "group": "id of the sweep that it is a part of, or None",
        },
    ),
    "job.examined": EventType(
        "What examining the job's data and model has shown.",
        {
            "rows": "of training data",
            "tokens": "in the training rows, before they are cut",
            "supervised": "training tokens that are targets",
            "truncated": "training rows longer than max_seq_length",
            "lost_share": "share of training tokens cut",
            "nothing_to_learn": "training rows without a target",
            "sampled": "rows that were looked at, when not all of them",
            "peak_gb": "estimated peak memory, 10^9 bytes; None when the model's shape is unknown",
            "limit_gb": "what training may use, 10^9 bytes",
            "seconds": "estimated time of the whole job; None when unknown",
            "warnings": "what a person should know before it runs",
        },
    ),
    "job.state": EventType(
        "The job moved to another state.", {"from": "old state", "to": "new state", "reason": "why, for a person"}
    ),
    "job.exited": EventType(
        "The training process of an attempt ended.",
        {
            "code": "exit code, None for a signal or unknown",
            "signal": "name of the signal that ended it, or None",
            "outcome": "done, stopped, stalled, out_of_memory, failed, crashed or lost",
        },
    ),
    "job.outdone": EventType(
        "A validation of a job is so much worse than what another of its sweep had by then that it is ended.",
        {
            "step": "micro-batches done",
            "loss": "on the validation rows, nats",
            "best": "the lowest that another had at this or an earlier step, nats",
            "by": "the other's id",
        },
    ),
    "job.cleaned": EventType(
        "A job that has ended was cleaned away, or its checkpoints were.", {"part": "run or checkpoints"}
    ),
    "queue.paused": EventType(
        "Nothing starts until the queue is resumed.", {"until": "when it ends by itself, or None"}
    ),
    "queue.resumed": EventType("Jobs start again.", {}),
    "gpu.busy": EventType(
        "No job starts: another process holds the GPU lock.", {"holder": "what it says of itself"}, "warning"
    ),
    # the machine and who else needs it
    "machine.power": EventType(
        "The machine changed from one source of power to another, or its battery got low.",
        {
            "source": "ac or battery",
            "percent": "charge of the battery; None where there is none",
            "low": "whether it is too low to train on",
        },
    ),
    "machine.heat": EventType(
        "The machine got hotter or cooler.",
        {"heat": "nominal, raised, heavy or critical", "before": "what it was"},
    ),
    "machine.pressure": EventType(
        "The machine got shorter of memory, or less so.",
        {"pressure": "normal, warning or critical", "before": "what it was"},
    ),
    "machine.unknown": EventType(
        "The system does not answer; what it said last counts for a while, then it is taken to be well.",
        {"what": "power, heat, pressure or free (room on the disk)", "reason": "what came instead of an answer"},
        "warning",
    ),
    "machine.slept": EventType(
        "Nothing ran for a while. Neither a stall nor time that a job has trained.",
        {"seconds": "that the machine slept", "stopped": "seconds that only the daemon stood still, as after SIGSTOP"},
    ),
    "machine.clock_set": EventType(
        "The clock on the wall was set.", {"seconds": "forward; negative for back"}, "warning"
    ),
    "hindrance.began": EventType(
        "Something keeps jobs from training; one that runs and is concerned stops at a checkpoint.",
        {
            "kind": "battery, low_battery, heat, pressure, disk or hours",
            "whom": "all; waiting (those that do not train yet); not_urgent; on_ac (jobs with `power: ac`); "
            "not_any (all but those with `power: any`)",
            "what": "in words",
        },
    ),
    "hindrance.ended": EventType("It keeps no job any more.", {"kind": "as above"}),
    "awake.held": EventType(
        "The machine will not go to sleep by itself while this attempt runs.",
        {"program": "that sees to it", "pid": "of the program"},
        "debug",
    ),
    "awake.failed": EventType(
        "The machine may go to sleep although a job trains; the job goes on when it wakes.",
        {"what": "why"},
        "warning",
    ),
    # training
    "training.started": EventType(
        "The training process holds the GPU and begins.",
        {
            "pid": "of the process",
            "backend": "metal, cuda or cpu",
            "device": "its name",
            "versions": "of Python, mlx and mlx_lm",
            "blas": "the BLAS library on CPU, or None",
            "threads": "of that library",
        },
    ),
    "kernels.lent": EventType(
        "Kernels that MLX compiled for earlier jobs need not be compiled again.", {"files": "how many"}, "debug"
    ),
    "kernels.kept": EventType("Kernels that MLX compiled are kept for later jobs.", {"files": "new ones"}, "debug"),
    "kernels.lost": EventType(
        "Kernels could not be taken over or kept; MLX compiles them.",
        {"doing": "lending them or keeping them", "reason": "the system's"},
        "warning",
    ),
    "phase.started": EventType(
        "A phase begins.", {"phase": "load, data, measure, train, test or sample; fuse or write"}
    ),
    "phase.ended": EventType("A phase has ended.", {"phase": "which", "seconds": "it took"}),
    "model.loaded": EventType(
        "The base model is in memory, with its adapters.",
        {
            "model": "folder or hub name",
            "model_type": "architecture",
            "bits": "of the quantized weights; None when none are",
            "quantized_on_load": "the model was not quantized and now is",
            "dequantized": "4-bit weights were made float32 once, for the CPU",
            "parameters": "in all",
            "trainable": "parameters that are trained",
            "memory_gb": "active memory, 10^9 bytes",
        },
    ),
    "data.loaded": EventType(
        "The data is tokenized.",
        {
            "format": "completion, chat, text",
            "train": "rows",
            "valid": "rows",
            "test": "rows",
            "tokens": "in the training rows",
            "supervised": "training tokens that are targets",
            "truncated": "training rows cut at max_seq_length",
            "lost_share": "share of training tokens cut",
            "nothing_to_learn": "training rows without a target",
            "steps": "micro-batches of the whole run",
            "updates": "optimizer steps of the whole run",
            "tokens_from": "cache (all tokens were kept by an earlier start) or text (rows were tokenized)",
            "seconds": "to read or tokenize all of it",
        },
    ),
    "tokens.not_kept": EventType(
        "Tokens cannot be kept on disk: they are in memory, and are made again at the next start.",
        {"path": "the folder of kept tokens", "what": "why"},
        "warning",
    ),
    "training.resumed": EventType(
        "Training goes on from a checkpoint.",
        {
            "step": "micro-batches already done",
            "path": "the checkpoint",
            "exact": "whether all that decides rounding is as it was when the checkpoint was written",
            "changed": "what is not as it was, in words",
        },
    ),
    "products.chosen": EventType(
        "How the model's frozen matrices are multiplied with.",
        {
            "kept": "whether all of them are dequantized once, for the whole run",
            "ways": "otherwise by shape, forward and backward: MLX's quantized product, or dequantized for each",
            "seconds": "measured by shape, forward and backward",
            "rows": "positions of a usual micro-batch, for which they were measured",
        },
    ),
    "recomputation.chosen": EventType(
        "Some layers are computed again in the backward pass, as many as the memory asks for.",
        {
            "layers": "the lowest so many of those that are trained",
            "of": "how many are trained",
            "limit_gb": "of training, 10^9 bytes",
        },
    ),
    "kernels.chosen": EventType(
        "What is computed by CUDA kernels of the engine's own rather than MLX's.",
        {
            "names": "of those that agree and are faster: rotary (embedding), norms, gated (parts), siblings, "
            "adapters, gradients (joined)",
            "seconds": "measured by name: MLX's and ours, forward and backward, of what one layer computes or more",
            "rows": "positions of a usual micro-batch, for which they were measured",
        },
    ),
    "kernels.failed": EventType(
        "A CUDA kernel of the engine's own could not be compiled or started here; MLX's is used.",
        {"name": "as in `kernels.chosen`", "why": "in the words of the compiler or the driver"},
        "warning",
    ),
    "siblings.chosen": EventType(
        "Whether adapted layers that read the same input compute as one.",
        {
            "together": "whether they do",
            "seconds_apart": "that all of them take forward and backward, each by itself",
            "seconds_together": "that they take as one",
            "rows": "positions of a usual micro-batch, for which it was measured",
        },
    ),
    "packing.chosen": EventType(
        "How the documents of a window are laid out in rows.",
        {
            "joined": "whether a row may hold several documents",
            "why": "in words",
            "saved": "share of the positions that joining saves on the first windows of this job",
            "attention": "width of a row at which its attention takes as long as all else",
            "seconds_alone": "that some documents took in rows of their own; None when it was not measured",
            "seconds_joined": "that they took in one row",
        },
    ),
    "environment.changed": EventType(
        "Something differs from the run's first start, so results may differ in rounding.",
        {"name": "what differs", "then": "recorded", "now": "found"},
        "warning",
    ),
    "memory.limits": EventType(
        "How much memory training may use.",
        {
            "limit_gb": "of training, 10^9 bytes; None when only the system limits it",
            "wired_gb": "kept from being paged out, 10^9 bytes; None where the backend has no such limit",
            "cache_gb": "of freed buffers kept for reuse, 10^9 bytes",
            "device_gb": "memory of the device, 10^9 bytes",
            "source": "the job file or the device",
        },
    ),
    "training.step": EventType(
        "One micro-batch is done. In metrics.jsonl.",
        {
            "step": "micro-batches done",
            "steps": "of the whole run",
            "update": "optimizer steps done",
            "epoch": "from 0",
            "loss": "mean over the micro-batch's targets, nats; None when it has none",
            "tokens": "targets in it",
            "tokens_per_second": "targets a second, this micro-batch",
            "gradient_norm": "of the micro-batch's summed gradient over its targets",
            "seconds": "it took",
            "rows": "that were computed",
            "documents": "in them",
            "memory_gb": "active memory, 10^9 bytes",
            "peak_gb": "peak memory since start, 10^9 bytes",
            "cache_gb": "freed buffers kept for reuse, 10^9 bytes",
            "process_gb": "resident memory of the process, 10^9 bytes",
        },
        "debug",
    ),
    "training.report": EventType(
        "The mean over the micro-batches since the last report.",
        {
            "step": "micro-batches done",
            "steps": "of the whole run",
            "update": "optimizer steps done",
            "epoch": "passes over the data, with fraction",
            "loss": "mean over targets, nats",
            "learning_rate": "at the last optimizer step",
            "gradient_norm": "at the last optimizer step, before clipping",
            "tokens": "targets trained in all",
            "tokens_per_second": "targets a second since the last report",
            "steps_per_second": "micro-batches a second since the last report",
            "padding": "share of the computed positions since the last report that held no token",
            "shapes": "shapes of batches so far; on a GPU each is compiled once",
            "memory_gb": "active memory, 10^9 bytes",
            "peak_gb": "peak memory since start, 10^9 bytes",
            "cache_gb": "freed buffers kept for reuse, 10^9 bytes",
            "process_gb": "resident memory of the process, 10^9 bytes",
            "seconds_left": "until the end at this speed",
        },
    ),
    "validation": EventType(
        "The loss on held-out rows.",
        {
            "step": "micro-batches done; 0 is before training",
            "split": "valid or test",
            "loss": "mean over targets, nats",
            "perplexity": "exp(loss)",
            "tokens": "targets",
            "rows": "evaluated",
            "seconds": "it took",
        },
    ),
    "checkpoint.saved": EventType(
        "A complete checkpoint is on disk.",
        {
            "step": "it stands at",
            "path": "its folder",
            "why": "start, count, time, best, stop, end or rollback",
            "bytes": "in all",
            "seconds": "that writing took; training goes on meanwhile unless it is the first, the last or a stop",
        },
    ),
    "checkpoint.damaged": EventType(
        "A checkpoint does not match its manifest and is passed over.", _FILE | {"what": "what is wrong"}, "warning"
    ),
    "guard.dropped": EventType(
        "Numbers that cannot be right were kept from the optimizer.",
        {
            "step": "micro-batches done, this one included",
            "place": "batch (a token that the model does not know), loss, gradient, or update",
            "rows": "row numbers of the training data, from 0",
            "loss": "mean over targets, nats, as computed; null when not finite",
            "gradient_norm": "as computed; null when not finite",
            "value": "the loss or norm in words: nan, inf, or the number",
            "in_a_row": "micro-batches dropped in a row",
        },
        "warning",
    ),
    "guard.rolled_back": EventType(
        "Too many micro-batches were dropped in a row: training goes back to a checkpoint, with a lower rate, "
        "and passes over those micro-batches.",
        {
            "step": "where it happened",
            "to_step": "of the checkpoint",
            "skipped": "micro-batches that are passed over, by step",
            "rate_factor": "what the learning rate is multiplied by from now on",
            "rollbacks": "in this run",
        },
        "warning",
    ),
    "training.early_stopped": EventType(
        "The validation loss no longer falls, so training ends.",
        {"step": "micro-batches done", "best_loss": "lowest validation loss", "best_step": "where it was"},
    ),
    "training.restarted": EventType(
        "Data or settings changed since the checkpoint, and the job says to start over.",
        {"changed": "what changed", "step": "of the checkpoint that is given up"},
        "warning",
    ),
    "ladder.rung": EventType(
        "Memory ran out: training goes on from its checkpoint in a way that needs less.",
        {
            "rung": "recompute, split or truncate",
            "change": "what it does, for a person",
            "reason": "the error, or how the process ended",
            "effective_batch": "rows of an optimizer step, which stay the same",
        },
        "warning",
    ),
    "ladder.damaged": EventType(
        "How training had stepped down cannot be read; it steps down again if memory runs out.", _FILE, "warning"
    ),
    "training.stalled": EventType(
        "No progress for longer than this phase may take: the process is stopped, and the job goes on from its "
        "checkpoint.",
        {
            "phase": "which",
            "step": "micro-batches done",
            "seconds": "without progress",
            "allowed": "seconds",
            "stacks": "of every Python thread, as text",
        },
        "error",
    ),
    "sample.answered": EventType(
        "An answer of the model, to be compared.",
        {
            "when": "before or after training",
            "prompt": "as asked",
            "answer": "greedy, cut after some tokens",
            "expected": "the answer in the data, or None",
        },
    ),
    "report.written": EventType("The report is written.", {"path": "of the file", "seconds": "it took"}),
    "report.failed": EventType(
        "The report could not be written, or a service does not take it; training is not harmed.",
        {"to": "report.html or the service's name", "what": "why"},
        "warning",
    ),
    "training.stopping": EventType("Training was asked to stop at a checkpoint.", {"cause": "signal, or parent gone"}),
    "training.stopped": EventType("Training stopped at a checkpoint.", {"step": "of the checkpoint"}),
    "training.done": EventType(
        "Training reached its end and the result is on disk.",
        {
            "step": "micro-batches done",
            "seconds": "this process ran",
            "tokens": "targets trained",
            "loss_before": "validation loss before training, or None",
            "loss_after": "validation loss at the end, or None",
            "kept": "last or best",
            "kept_step": "the step that the result stands at",
            "adapters": "folder with the result",
        },
    ),
    "training.failed": EventType("Training cannot go on.", _PROBLEM | {"error": "type of the error"}, "error"),
    # fusing
    "fuse.started": EventType(
        "The process of a job that fuses holds the GPU and begins.",
        {
            "pid": "of the process",
            "source": "the job whose adapters are fused",
            "backend": "metal, cuda or cpu",
            "device": "its name",
            "versions": "of Python, mlx and mlx_lm",
        },
    ),
    "model.fused": EventType(
        "The base and the adapters are one model in memory.",
        {
            "weights": "adapters, or the checkpoint that they were taken from",
            "layers": "that had adapters; 0 where the weights themselves were trained",
            "bits": "of the fused weights; None when none are quantized",
            "memory_gb": "active memory, 10^9 bytes",
        },
    ),
    "fuse.done": EventType(
        "The fused model is on disk.",
        {
            "source": "the job whose adapters were fused",
            "model": "folder of the MLX model, or None",
            "gguf": "the GGUF file, or None",
            "added": "the model's place among the home's models, or None",
            "bytes": "in all",
            "seconds": "this process ran",
        },
    ),
    "fuse.failed": EventType("Fusing cannot go on.", _PROBLEM | {"error": "type of the error"}, "error"),
}
