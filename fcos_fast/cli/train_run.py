"""What ``fcos-fast train`` does with its options. It needs torch, which they do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fcos_fast.cli.outcome import in_log_of, present
from fcos_fast.cli.train import parse_train_options, run_to_resume
from fcos_fast.engine.callbacks import Callback
from fcos_fast.engine.config import Config
from fcos_fast.engine.distributed import is_main, processes
from fcos_fast.engine.restart import Restarted, run_to_continue
from fcos_fast.engine.train import TrainResult, resume, train


def run(arguments: Sequence[str], config: Config | None, callbacks: Sequence[Callback] = ()) -> TrainResult:
    """Train with ``config``, or resume the run that ``arguments`` name if it is None; present the result."""
    with processes():
        outcome = _train_or_resume(arguments, config, callbacks)
        if is_main():
            with in_log_of(outcome):
                present(outcome)
    return outcome


def _train_or_resume(
    arguments: Sequence[str], config: Config | None, callbacks: Sequence[Callback]
) -> TrainResult:
    if config is None:
        folder = run_to_resume(arguments) or ""
        return resume(folder, lambda run: parse_train_options(arguments, run).config(), callbacks)
    restarted = run_to_continue(config)
    if restarted is None:
        return train(config, callbacks)
    root = config.data.root
    return resume(
        restarted, lambda run: replace(run, data=replace(run.data, root=root)), [*callbacks, Restarted()]
    )
