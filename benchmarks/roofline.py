"""Roofline bounds of the CUDA kernels from machine code and data sheets: ``python -m benchmarks.roofline``.

Nothing here is measured. Issue time: every scheduler issues one warp instruction per cycle at the boost clock. Memory
time: bytes divided by the fraction of the nominal bandwidth that a copy achieves. Launches: some microseconds each. The
greatest of these is a lower bound of the time; in practice they overlap only in part.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.kernel_work import WORKS, Work

WARP = 32
SCHEDULERS = 4  # per multiprocessor, on all GPUs below
COPY_SHARE = 0.9  # of the nominal bandwidth
LAUNCH_US = 2.0
REGISTERS = 65536  # per multiprocessor
NOTE = "predicted from machine code, not measured"


@dataclass(frozen=True)
class Card:
    """A GPU according to its data sheet.

    Attributes:
        multiprocessors: number of multiprocessors.
        boost_ghz: boost clock.
        memory_gb_per_s: nominal memory bandwidth.
        threads: maximum number of threads per multiprocessor.
    """

    name: str
    multiprocessors: int
    boost_ghz: float
    memory_gb_per_s: float
    threads: int = 2048

    def issue_us(self, work: Work) -> float | None:
        """Time to issue the instructions of the hot loops; None if they are not counted."""
        if work.instructions_per_element is None:
            return None
        instructions = work.elements * work.instructions_per_element / WARP
        return instructions / (self.multiprocessors * SCHEDULERS * self.boost_ghz * 1e3)

    def memory_us(self, work: Work) -> float:
        """Time to move the bytes."""
        return work.bytes / (COPY_SHARE * self.memory_gb_per_s * 1e3)

    def occupancy(self, work: Work) -> float:
        """Fraction of a multiprocessor's threads that registers and blocks allow; ignores shared memory."""
        return min(self._occupancy(budget.registers, budget.threads) for budget in work.budgets)

    def _occupancy(self, registers: int, threads: int) -> float:
        by_warp = -(-registers // 8) * 8 * WARP
        blocks = min(REGISTERS // (by_warp * (threads // WARP)), self.threads // threads)
        return blocks * threads / self.threads


CARDS = [
    Card("H100 SXM", 132, 1.98, 3350),
    Card("H200 SXM", 132, 1.98, 4800),
    Card("A100 SXM 80 GB", 108, 1.41, 2039),
    Card("RTX 4090", 128, 2.52, 1008, threads=1536),
]


def binding(times: dict[str, float | None]) -> str:
    """The name of the greatest time."""
    return max((name for name, time in times.items() if time is not None), key=lambda name: times[name])


def line(card: Card, work: Work) -> str:
    """The report of one operator on one GPU."""
    times = {
        "issue": card.issue_us(work),
        "memory": card.memory_us(work),
        "launches": work.launches * LAUNCH_US,
    }
    bound = binding(times)
    issue = "not counted" if times["issue"] is None else f"{times['issue']:.0f} us"
    registers = max(budget.registers for budget in work.budgets)
    return (
        f"{card.name:15} {work.what:40} {work.bytes / 1e6:6.0f} MB  issue {issue:>11}  "
        f"memory {times['memory']:4.0f} us  {work.launches} launches {times['launches']:3.0f} us  "
        f"{registers:3} registers, occupancy {card.occupancy(work):4.0%}  "
        f"bound by {bound}: at least {times[bound]:.0f} us; {NOTE}"
    )


def main() -> None:
    """Print a line for each operator on each GPU."""
    for card in CARDS:
        for work in WORKS:
            print(line(card, work))


if __name__ == "__main__":
    main()
