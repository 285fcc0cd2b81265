"""What binds each kernel on some cards, from machine code and public data sheets: ``python -m benchmarks.roofline``.

Nothing here is measured. Issue time: every scheduler issues one instruction of a warp per cycle of the boost clock.
Memory time: bytes over the share of the data sheet's bandwidth that a copy reaches. Launches: each costs the device
some microseconds. The greatest of those that are counted binds; they overlap in part, so the time is at least that.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.kernel_work import WORKS, Work

WARP = 32
SCHEDULERS = 4  # of a multiprocessor, on all cards below
COPY_SHARE = 0.9  # of the data sheet's bandwidth
LAUNCH_US = 2.0
REGISTERS = 65536  # of a multiprocessor
NOTE = "predicted from machine code, not measured"


@dataclass(frozen=True)
class Card:
    """From its data sheet.

    Attributes:
        multiprocessors: number of them.
        boost_ghz: greatest clock.
        memory_gb_per_s: bandwidth.
        threads: that a multiprocessor holds.
    """

    name: str
    multiprocessors: int
    boost_ghz: float
    memory_gb_per_s: float
    threads: int = 2048

    def issue_us(self, work: Work) -> float | None:
        """Time to issue the instructions of the hot loops; None where they are not counted."""
        if work.instructions_per_element is None:
            return None
        instructions = work.elements * work.instructions_per_element / WARP
        return instructions / (self.multiprocessors * SCHEDULERS * self.boost_ghz * 1e3)

    def memory_us(self, work: Work) -> float:
        """Time to move the bytes."""
        return work.bytes / (COPY_SHARE * self.memory_gb_per_s * 1e3)

    def occupancy(self, work: Work) -> float:
        """Share of the threads of a multiprocessor that registers and blocks allow; shared memory is not looked at."""
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
    """The name of the greatest."""
    return max((name for name, time in times.items() if time is not None), key=lambda name: times[name])


def line(card: Card, work: Work) -> str:
    """A piece of work on a card."""
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
    """A line for each kernel on each card."""
    for card in CARDS:
        for work in WORKS:
            print(line(card, work))


if __name__ == "__main__":
    main()
