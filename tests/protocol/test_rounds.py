# SPDX-License-Identifier: Apache-2.0
"""The gateway's round: when it closes, whom it waits for, and what it refuses."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_tiny.errors import OutOfTurn
from fl_tiny.protocol.rounds import (
    GRACE_S,
    Abort,
    Answered,
    Came,
    Delivered,
    Lost,
    Opened,
    Publish,
    Refuse,
    Revoked,
    Rounds,
    RoundSettings,
    State,
    Submitting,
    Take,
    restored,
)
from fl_tiny.protocol.wire import Code, Said

RID, OTHER = b"r" * 8, b"o" * 8
A, B, C, D = (bytes([n]) * 16 for n in range(4))
DEADLINE_S = 600.0


def opened(*online: bytes, clients: int | None = None, quorum: float = 0.6, active: int | None = None) -> Rounds:
    rounds = Rounds(RoundSettings(clients, quorum, DEADLINE_S))
    rounds.handle(Opened(RID, 1, frozenset(online), active or len(online), DEADLINE_S), 0.0)
    return rounds


def join(rounds: Rounds, *dids: bytes, now: float = 1.0) -> None:
    for did in dids:
        assert rounds.handle(Answered(did, RID, Said.JOIN), now) == [Take()]


def kinds(actions: list[object]) -> list[type]:
    return [type(action) for action in actions]


def test_a_round_closes_as_soon_as_everyone_has_delivered() -> None:
    rounds = opened(A, B)
    join(rounds, A, B)
    assert kinds(rounds.handle(Delivered(A), 2.0)) == [Take]
    assert rounds.state is State.COLLECTING
    assert kinds(rounds.handle(Delivered(B), 3.0)) == [Take, Publish]
    assert rounds.state is State.IDLE


def test_a_dead_device_costs_a_round_its_own_length_again_and_no_more() -> None:
    rounds = opened(A, B, C)
    join(rounds, A, B, C)
    rounds.handle(Delivered(A), 20.0)
    rounds.handle(Delivered(B), 30.0)  # two of three are a quorum of .6
    assert rounds.deadline() == 60.0
    assert rounds.tick(59.0) == []
    assert rounds.tick(60.0) == [Publish(frozenset({C}))]


def test_a_device_that_was_lost_is_not_waited_for_but_its_update_is_taken() -> None:
    rounds = opened(A, B, clients=2)
    join(rounds, A, B)
    assert rounds.waited_for() == {A, B}
    rounds.handle(Lost(B), 5.0)
    assert kinds(rounds.handle(Submitting(B, RID), 6.0)) == [Take]
    assert kinds(rounds.handle(Delivered(A), 7.0)) == [Take, Publish]


def test_a_device_that_came_back_after_a_crash_is_asked_again() -> None:
    rounds = opened(A, B)
    join(rounds, A, B)
    rounds.handle(Came(A), 2.0)
    assert rounds.invites(A, 1.0)
    join(rounds, A)
    rounds.handle(Delivered(A), 3.0)
    assert kinds(rounds.handle(Delivered(B), 3.0)) == [Take, Publish]


def test_a_quick_round_still_waits_a_little_for_stragglers() -> None:
    rounds = opened(A, B, C)
    join(rounds, A, B, C)
    rounds.handle(Delivered(A), 1.0)
    rounds.handle(Delivered(B), 1.0)
    assert rounds.deadline() == 1.0 + GRACE_S
    assert kinds(rounds.handle(Delivered(C), 1.5)) == [Take, Publish]


def test_below_the_quorum_the_deadline_publishes_what_has_come() -> None:
    rounds = opened(A, B, C, D)
    join(rounds, A, B, C, D)
    rounds.handle(Delivered(A), 5.0)
    rounds.handle(Delivered(B), 6.0)
    assert rounds.tick(DEADLINE_S - 1) == []
    assert kinds(rounds.tick(DEADLINE_S)) == [Publish]


def test_one_update_is_no_head_while_another_device_works_on_its_own() -> None:
    rounds = opened(A, B, C)
    join(rounds, A, B)
    rounds.handle(Delivered(A), 5.0)
    assert rounds.tick(DEADLINE_S) == [] and rounds.deadline() == 2 * DEADLINE_S
    assert kinds(rounds.handle(Delivered(B), DEADLINE_S + 1)) == [Take, Publish]
    again = opened(A, B, C)
    join(again, A, B)
    again.handle(Delivered(A), 5.0)
    assert again.tick(DEADLINE_S) == []
    assert kinds(again.handle(Lost(B), DEADLINE_S + 1)) == [Publish], "nobody else works on one any more"
    patient = opened(A, B, C)
    join(patient, A, B)
    patient.handle(Delivered(A), 5.0)
    assert patient.tick(2 * DEADLINE_S - 1) == []
    assert kinds(patient.tick(2 * DEADLINE_S)) == [Publish], "a board that hangs holds no fleet up for ever"


def test_a_head_is_made_of_as_many_updates_as_were_asked_for_or_of_none() -> None:
    rounds = Rounds(RoundSettings(None, 0.6, DEADLINE_S, min_updates=3))
    rounds.handle(Opened(RID, 1, frozenset({A, B}), 2, DEADLINE_S), 0.0)
    join(rounds, A, B)
    rounds.handle(Delivered(A), 5.0)
    assert kinds(rounds.handle(Delivered(B), 6.0)) == [Take]
    assert rounds.tick(DEADLINE_S) == []
    rounds.handle(Came(C), DEADLINE_S + 1)
    join(rounds, C)
    assert kinds(rounds.handle(Delivered(C), DEADLINE_S + 2)) == [Take, Publish]
    rounds.handle(Opened(OTHER, 2, frozenset({A, B}), 2, DEADLINE_S), 0.0)
    for did in (A, B):
        rounds.handle(Answered(did, OTHER, Said.JOIN), 1.0)
        rounds.handle(Delivered(did), 2.0)
    end = rounds.tick(2 * DEADLINE_S)
    assert kinds(end) == [Abort] and end[0].why == "2 of 3 updates came"


def test_without_any_update_the_deadline_aborts() -> None:
    rounds = opened(A)
    join(rounds, A)
    assert kinds(rounds.tick(DEADLINE_S)) == [Abort]


def test_a_fleet_that_declines_is_not_waited_for() -> None:
    rounds = opened(A, B)
    assert kinds(rounds.handle(Answered(A, RID, Said.TOO_FEW_SAMPLES), 1.0)) == [Take]
    assert kinds(rounds.handle(Answered(B, RID, Said.TOO_FEW_SAMPLES), 1.0)) == [Take, Abort]


def test_a_decline_lowers_the_target() -> None:
    rounds = opened(A, B, clients=2)
    join(rounds, A)
    rounds.handle(Delivered(A), 2.0)
    assert kinds(rounds.handle(Answered(B, RID, Said.TOO_FEW_SAMPLES), 3.0)) == [Take, Publish]


def test_a_newcomer_is_waited_for_by_default() -> None:
    rounds = opened(A)
    join(rounds, A)
    rounds.handle(Came(B), 1.0)
    assert kinds(rounds.handle(Delivered(A), 2.0)) == [Take]
    join(rounds, B)
    assert kinds(rounds.handle(Delivered(B), 3.0)) == [Take, Publish]


def test_no_more_devices_join_than_clients_are_wanted() -> None:
    rounds = opened(A, B, C, clients=2)
    join(rounds, A, B)
    assert not rounds.invites(C, 1.0)
    (refusal,) = rounds.handle(Answered(C, RID, Said.JOIN), 2.0)
    assert isinstance(refusal, Refuse) and refusal.code is Code.PHASE


def test_a_revoked_device_is_neither_counted_nor_waited_for() -> None:
    rounds = opened(A, B)
    join(rounds, A, B)
    rounds.handle(Delivered(A), 2.0)
    assert kinds(rounds.handle(Revoked(B), 3.0)) == [Publish]


@pytest.mark.parametrize(
    ("event", "code"),
    [
        (Answered(A, OTHER, Said.JOIN), Code.LATE),
        (Submitting(A, OTHER), Code.LATE),
        (Submitting(B, RID), Code.PHASE),
    ],
)
def test_a_message_that_does_not_fit_is_refused_and_changes_nothing(event: Answered | Submitting, code: Code) -> None:
    rounds = opened(A, B)
    join(rounds, A)
    before = copy.deepcopy(rounds._round)
    (refusal,) = rounds.handle(event, 2.0)
    assert isinstance(refusal, Refuse) and refusal.code is code
    assert rounds._round == before and rounds.state is State.OPEN


def test_an_idle_gateway_refuses_what_belongs_to_a_round() -> None:
    rounds = Rounds(RoundSettings())
    for event in (Answered(A, RID, Said.JOIN), Submitting(A, RID)):
        (refusal,) = rounds.handle(event, 1.0)
        assert isinstance(refusal, Refuse)
    with pytest.raises(OutOfTurn):
        rounds.handle(Delivered(A), 1.0)


def test_opening_twice_is_our_own_fault() -> None:
    rounds = opened(A)
    with pytest.raises(OutOfTurn):
        rounds.handle(Opened(OTHER, 2, frozenset({B}), 1, 1.0), 2.0)
    assert rounds.rid == RID


def test_a_restart_goes_on_where_the_store_was() -> None:
    again = restored(
        RoundSettings(None, 0.6, DEADLINE_S),
        Opened(RID, 1, frozenset({A, B}), 2, 60.0),
        [(A, Said.JOIN), (B, Said.JOIN)],
        100.0,
    )
    assert not again.invites(A, 1.0)
    again.handle(Delivered(A), 101.0)
    assert kinds(again.handle(Delivered(B), 102.0)) == [Take, Publish]


def test_idle_devices_are_asked_back_when_the_next_round_opens() -> None:
    rounds = Rounds(RoundSettings())
    assert rounds.poll_s(A, 0.0, 3600.0) == 240.0  # a round an hour needs no word a minute
    assert Rounds(RoundSettings(interval_s=600.0)).poll_s(A, 0.0, 600.0) == 60.0
    assert rounds.poll_s(A, 0.0, 12.0) == 12.0
    assert rounds.poll_s(A, 0.0, -5.0) == 0.2


EVENT = st.one_of(
    st.builds(Came, st.sampled_from([A, B, C, D])),
    st.builds(Answered, st.sampled_from([A, B, C, D]), st.sampled_from([RID, OTHER]), st.sampled_from(list(Said))),
    st.builds(Submitting, st.sampled_from([A, B, C, D]), st.sampled_from([RID, OTHER])),
    st.builds(Revoked, st.sampled_from([A, B, C, D])),
    st.builds(Lost, st.sampled_from([A, B, C, D])),
)


@settings(max_examples=300)
@given(st.lists(st.tuples(EVENT, st.floats(0, 30)), max_size=25), st.sampled_from([None, 1, 2, 3]), st.floats(0.1, 1.0))
def test_whatever_peers_send_a_round_ends_by_its_deadline(
    events: list[tuple[object, float]], clients: int | None, quorum: float
) -> None:
    rounds = opened(A, B, clients=clients, quorum=quorum, active=4)
    now, ends = 0.0, []
    for event, wait in events:
        now += wait
        ends += [a for a in rounds.tick(now) if isinstance(a, Publish | Abort)]
        actions = rounds.handle(event, now)  # type: ignore[arg-type]
        ends += [a for a in actions if isinstance(a, Publish | Abort)]
        if isinstance(event, Submitting) and actions[:1] == [Take()] and rounds.rid is not None:
            ends += [a for a in rounds.handle(Delivered(event.did), now) if isinstance(a, Publish | Abort)]
    if rounds.rid is not None:
        deadline = rounds.deadline()
        assert deadline is not None and deadline <= DEADLINE_S
        ends += rounds.tick(DEADLINE_S)
    assert len(ends) == 1
    assert rounds.rid is None


def test_a_slow_device_holds_no_round_up_that_asked_for_more_than_it_needs() -> None:
    dids = [bytes([n]) * 16 for n in range(20)]
    rounds = opened(*dids, clients=10)
    join(rounds, *dids[:13])
    assert rounds.handle(Answered(dids[13], RID, Said.JOIN), 1.0) == [
        Refuse(Code.PHASE, "this round has enough devices")
    ]
    for did in dids[:9]:
        assert kinds(rounds.handle(Delivered(did), 2.0)) == [Take]
    closed = rounds.handle(Delivered(dids[9]), 2.0)
    assert kinds(closed) == [Take, Publish]
    assert isinstance(closed[1], Publish) and not closed[1].silent, "nobody was waited for"
    late = rounds.handle(Submitting(dids[10], RID), 2.1)
    assert isinstance(late[0], Refuse) and late[0].code is Code.LATE
    strict = Rounds(RoundSettings(10, over_selection=1.0))
    strict.handle(Opened(RID, 1, frozenset(dids), 20, DEADLINE_S), 0.0)
    join(strict, *dids[:10])
    assert isinstance(strict.handle(Answered(dids[10], RID, Said.JOIN), 1.0)[0], Refuse)


@given(st.binary(min_size=8, max_size=8), st.integers(100, 1000))
def test_a_fleet_is_sampled_and_more_are_asked_while_places_are_free(rid: bytes, online: int) -> None:
    dids = [n.to_bytes(16, "big") for n in range(online)]
    rounds = Rounds(RoundSettings(20))
    rounds.handle(Opened(rid, 1, frozenset(dids), online, DEADLINE_S), 0.0)
    asked = {now: {did for did in dids if rounds.invites(did, now)} for now in (0.0, 5.0, 10.0, 60.0)}
    assert len(asked[0.0]) <= 26 + 6 * 26**0.5
    assert asked[0.0] <= asked[5.0] <= asked[10.0] <= asked[60.0] == set(dids)
    for did in dids[:26]:  # whoever answers is taken, also one that was not asked yet
        assert rounds.handle(Answered(did, rid, Said.JOIN), 1.0) == [Take()]
    assert not any(rounds.invites(did, 60.0) for did in dids)


def test_each_round_asks_others() -> None:
    dids = [n.to_bytes(16, "big") for n in range(500)]
    asked: set[bytes] = set()
    for number in range(40):
        rounds = Rounds(RoundSettings(50))
        rounds.handle(Opened(bytes([number]) * 8, 1, frozenset(dids), 500, DEADLINE_S), 0.0)
        asked |= {did for did in dids if rounds.invites(did, 0.0)}
    assert len(asked) >= 490
