"""The explorer on a small configuration; ``python -m tests.model --config ci`` exhausts the larger ones."""

from __future__ import annotations

import pytest

from tests.faults.mutants import planted
from tests.faults.planted_bugs import MUTANTS as PYTHON
from tests.model.calls import Result
from tests.model.configs import BEYOND, CONFIGS, SUITES, Config, Faults
from tests.model.explore import Explorer
from tests.model.mutants import editing, judge
from tests.model.normal import State
from tests.model.planted_bugs import MUTANTS
from tests.model.worlds import DEAD, ENDED, FINISHED, HELD, IDLE, SEATED, UNREAD, WAIT, Client
from tests.planted import KNOWN, Edit, Mutant, matrix


def test_two_programs_with_a_crash_a_lost_reply_a_lost_message_and_lost_data_keep_every_promise() -> None:
    report = Explorer(CONFIGS["small"]).run()
    assert report.violation is None, str(report)
    assert report.exhausted
    assert report.states > 2_500


def test_a_violation_is_told_by_the_shortest_way_to_it() -> None:
    mutant = next(mutant for mutant in MUTANTS if mutant.name == "no grace after a restart")
    report = Explorer(CONFIGS["small"], editing(mutant)).run()
    assert report.violation is not None
    assert "both hold the lock" in report.violation.promise
    assert list(report.violation.trace) == [
        "a0 acquire, push -> held new",
        "the server restarts, empty",
        "b0 acquire, push -> held new",
    ]


def test_programs_start_in_every_order_but_where_another_order_only_changes_their_names() -> None:
    def may_start_third(config: str) -> bool:
        rules = Explorer(CONFIGS[config]).rules
        first_waits = rules.start._replace(clients=(Client(WAIT), *rules.start.clients[1:]))
        return any(text.startswith("c0 ") for text, _, _ in rules.steps(first_waits))

    assert may_start_third("shared"), "the first two share an inbox, and the third has its own"
    assert not may_start_third("faults")


def test_a_program_may_start_between_two_turns_of_its_equal() -> None:
    rules = Explorer(CONFIGS["turns"]).rules

    def second_may_start(first: Client) -> bool:
        world = rules.start._replace(clients=(first, *rules.start.clients[1:]))
        return any(text.startswith("b0 ") for text, _, _ in rules.steps(world))

    assert second_may_start(Client(IDLE, turn=1))
    assert not second_may_start(Client(IDLE)), "that is the same history under other names"


def test_beside_a_dead_program_nothing_of_a_finished_one_stays() -> None:
    explorer = Explorer(CONFIGS["small"])
    caller = explorer.rules.caller

    def broken(seat: str) -> str:
        state = caller.number(State(queue=((seat, 0),), uptime=1))
        return explorer.broken(explorer.rules.start._replace(state=state, clients=(Client(FINISHED), Client(DEAD))))

    assert broken("b0") == ""
    assert broken("a0") == "nobody is there, but queue stayed"


def test_what_came_back_may_stay_until_it_expires_unless_its_end_is_known() -> None:
    explorer = Explorer(CONFIGS["small"])
    caller, clients = explorer.rules.caller, (Client(FINISHED), Client(FINISHED))

    def broken(*back: str, done: str = "") -> str:
        ended = ((done, 1),) if done else ()
        state = caller.number(State(queue=(("b0", 0),), uptime=1, done=ended))
        return explorer.broken(explorer.rules.start._replace(state=state, clients=clients, back=back))

    assert broken() == broken("a0") == "nobody is there, but queue stayed"
    assert broken("b0") == ""
    assert broken("b0", done="b0") == "b0 is there although its end is known"


def test_a_waiter_may_be_ended_only_if_it_may_hold_without_knowing_or_an_operator_ended_it() -> None:
    rules = Explorer(CONFIGS["small"]).rules
    world = rules.spend(rules.start, "reply")

    def fault(outcome: str, flag: int) -> str:
        return rules._acquired(world, 0, Client(WAIT, flag=flag), Result(("done", outcome), world.state, (), ""), 0)[1]

    assert fault("reaped", SEATED) == "a waits, and was ended as reaped"
    assert fault("reaped", UNREAD) == ""
    assert fault("forced", UNREAD) == "a waits, and was ended as forced"
    assert fault("forced", ENDED) == ""


def test_a_reply_that_nobody_reads_may_have_given_the_lock() -> None:
    rules = Explorer(CONFIGS["small"]).rules
    flags = {text: world.clients[0].flag for text, world, _ in rules.steps(rules.start) if "reply is lost" in text}
    assert flags == {"a0 acquire, push -> held new, but the reply is lost": UNREAD}


def test_whoever_is_served_later_than_the_bound_is_a_violation() -> None:
    class Hasty(Config):
        @property
        def served_within(self) -> int:
            return 4

    assert CONFIGS["small"].served_within == 6
    violation = Explorer(Hasty(*CONFIGS["small"])).run().violation
    assert violation is not None
    assert violation.promise == "it takes 5 ticks to serve everybody, more than 4"
    assert violation.trace.count("1 tick passes") >= 5


def test_a_script_that_fails_is_no_evidence_unless_the_bug_says_so() -> None:
    bug = Mutant("no such function", "small", (Edit("release", "announce_release(", "announce("),))
    verdict = judge(bug)
    assert not verdict.killed
    assert verdict.refused.startswith("the script failed: ")
    assert "REFUSED" in matrix([verdict])
    assert ", 0 killed, 1 survived" in matrix([verdict])
    assert judge(bug._replace(fails=True)).killed


def test_a_script_that_leaves_what_the_model_does_not_know_is_no_evidence() -> None:
    unknown = Edit(
        "parts/holding", "redis.call('HSET', FENCE, 'token', f.token)", "redis.call('HSET', FENCE, 'odd', 1)"
    )
    verdict = judge(Mutant("an unknown field", "small", (unknown,)))
    assert not verdict.killed
    assert "unknown fields of the fence: {'odd'}" in verdict.refused


@pytest.mark.parametrize("config", BEYOND.values(), ids=lambda config: config.name)
def test_what_is_declared_out_of_bounds_fails_indeed(config: Config) -> None:
    violation = Explorer(config).run().violation
    assert violation is not None
    assert "both hold the lock" in violation.promise


def test_a_holder_that_does_not_notice_a_restart_within_its_grace_fails_indeed() -> None:
    explorer = Explorer(CONFIGS["small"])
    explorer.rules.may_tick = lambda world: True  # type: ignore[method-assign]
    explorer.rules.somebody_is_due = lambda world: False  # type: ignore[method-assign]
    violation = explorer.run().violation
    assert violation is not None
    assert "both hold the lock" in violation.promise


def test_the_ci_configuration_has_what_the_promise_names() -> None:
    faults = CONFIGS["faults"].faults
    assert "faults" in SUITES["ci"]
    assert len(CONFIGS["faults"].clients) >= 3
    assert min(faults.crash, faults.reply, faults.message, faults.data) >= 1


def test_faults_are_spent_and_nothing_is_held_at_the_start() -> None:
    rules = Explorer(CONFIGS["small"]).rules
    assert rules.start.faults == Faults(crash=1, reply=1, message=1, data=1)
    assert not [client for client in rules.start.clients if client.phase == HELD]


def test_every_known_bug_is_planted_somewhere_and_every_planted_text_is_there() -> None:
    known = {name for mutant in (*MUTANTS, *PYTHON) for name in mutant.known}
    assert known == set(KNOWN)
    for mutant in PYTHON:
        assert planted(mutant)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_planted_bug_is_caught(mutant: Mutant) -> None:
    verdict = judge(mutant)
    assert verdict.killed, verdict.refused or f"{mutant.killer} does not notice it"
