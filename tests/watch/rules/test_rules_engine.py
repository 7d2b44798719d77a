"""`Rules`: what is done about alerts, in which thread, and what happens when something fails."""

import logging
import threading
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
from rules_streams import block, cut, found, healthy, names, whole

from gradwise.errors import UserError
from gradwise.watch import rules
from gradwise.watch.alerts import Alert, AlertJournal, GradientAlert, read_alerts
from gradwise.watch.rules import Judgement, Rules, Words


@dataclass(kw_only=True)
class High(rules.Rule):
    """The scalar `x` is above 1; calm below 1."""

    name: ClassVar[str] = "high"

    streak: int = 2
    calm: int = 2

    def judge(self, view):
        x = view.scalar("x")[:, None]
        return Judgement(~np.isnan(x), x > 1, x < 1, x)

    def explain(self, found):
        return Words(f"x rose to {found.worst.value:g}.", "Lower it.", "error")


def of(*values, first=0):
    return block({}, {"x": values}, names=("a", "b"), first=first)


HIGH = of(0, 5, 6, 0, 0)


def test_the_log_gets_one_line_and_the_advice_once(caplog):
    engine = Rules([High(calm=1)])
    with caplog.at_level(logging.INFO, logger="gradwise"):
        engine.take(HIGH)
        engine.take(of(7, 7, 0, first=5))
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert told == [
        ("ERROR", "step 1, high: x rose to 6. Lower it."),
        ("INFO", "high is over since step 3: x rose to 6."),
        ("ERROR", "step 5, high: x rose to 7."),
    ]


def test_a_warning_is_logged_as_one(caplog):
    layers = healthy(200)
    layers["norm"][100:, 1] = 0.0
    found(block({"norm": layers["norm"]}), [rules.Dead()])
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_functions_are_called_where_the_loop_delivers(caplog):
    seen = []

    def act(alert):
        seen.append((alert, threading.current_thread()))

    engine = Rules([High(action=act)])
    thread = threading.Thread(target=engine.take, args=(HIGH,))
    thread.start()
    thread.join()
    assert seen == []
    engine.deliver()
    [(alert, where)] = seen
    assert where is threading.current_thread()
    assert alert == replace(engine.alerts[0], ended=None)
    engine.deliver()
    assert len(seen) == 1
    assert caplog.records == []  # the function is what was asked for


def test_raises_where_the_loop_delivers_and_only_once():
    engine = Rules([High(action="raise")])
    engine.take(of(0, 5))
    engine.deliver()  # the streak is not long enough
    engine.take(of(6, first=2))
    with pytest.raises(GradientAlert, match=r"^step 1, high: x rose to 6\. Lower it\.$") as caught:
        engine.deliver()
    assert caught.value.alert == engine.active[0]
    engine.deliver()


def test_what_waits_behind_an_exception_comes_with_the_next_call():
    seen = []

    def fail(alert):
        raise KeyboardInterrupt

    engine = Rules([High(action=fail)], on_alert=seen.append)
    engine.take(HIGH)
    with pytest.raises(KeyboardInterrupt):
        engine.deliver()
    assert seen == []
    engine.deliver()
    assert names(seen) == ["high"]


def test_on_alert_hears_of_every_rule_and_the_log_does_too(caplog):
    seen = []
    engine = Rules([High()], on_alert=seen.append)
    engine.take(HIGH)
    engine.deliver()
    assert names(seen) == ["high"]
    assert len(caplog.records) == 1
    both = Rules([High(action=seen.append)], on_alert=seen.append)
    seen.clear()
    both.take(HIGH)
    both.deliver()
    assert len(seen) == 1


def test_look_tells_of_new_alerts_only():
    engine = Rules([High()])
    assert engine.look(of(0, 5)) == []
    [alert] = engine.look(of(6, 7, first=2))
    assert engine.active == engine.alerts == [alert]
    assert engine.look(of(0, 0, first=4)) == []
    assert engine.active == []
    assert engine.alerts == [replace(alert, ended=4)]


def test_of_two_rules_with_a_name_the_first_counts():
    mine = [High(streak=1), High(streak=3)]
    assert len(found(of(0, 5, 0), mine)) == 1
    assert found(of(0, 5, 0), reversed(mine)) == []
    assert Rules(mine).rules == (mine[0],)
    changed = [rules.Exploding(action="raise"), *rules.default_rules()]
    assert len(Rules(changed).rules) == len(rules.default_rules()) == len(Rules().rules)


def test_a_rule_object_serves_many_runs():
    rule = rules.Exploding()
    layers = healthy(200)
    layers["norm"][100:110] *= 100
    stream = block(layers, {"grad_norm": whole(layers["norm"])})
    first, second = found(stream, [rule]), found(stream, [rule])
    assert first == second != []
    engines = [Rules([rule]), Rules([rule])]
    for part in cut(stream, [10]):
        for engine in engines:
            engine.take(part)
    assert engines[0].alerts == engines[1].alerts == first


def test_no_rules_at_all():
    assert found(HIGH, []) == []


@pytest.mark.parametrize("wrong", [rules.Dead, "dead", None])
def test_something_else_than_a_rule(wrong):
    # In a generator, where the test run's own check of arguments does not see it.
    with pytest.raises(UserError, match=r"expected rules such as Exploding\(\), got"):
        Rules(rule for rule in [wrong])


def test_a_rule_that_fails_is_left_out_and_the_others_go_on(caplog):
    @dataclass(kw_only=True)
    class Broken(High):
        name: ClassVar[str] = "broken"

        def judge(self, view):
            raise ZeroDivisionError

    engine = Rules([Broken(), High()])
    for start in range(0, 40, 10):
        engine.take(of(*[5] * 10, first=start))
    assert names(engine.alerts) == ["high"]
    assert engine.errors == 1
    assert [rule.name for rule in engine.rules] == ["high"]
    assert [r.getMessage() for r in caplog.records if r.exc_info] == [
        "the rule 'broken' failed and is left out from now on"
    ]


@pytest.mark.parametrize("where", ["begin", "explain", "shape"])
def test_a_rule_may_fail_anywhere(where):
    @dataclass(kw_only=True)
    class Broken(High):
        def begin(self, names):
            return super().begin(names) if where != "begin" else 1 / 0

        def judge(self, view):
            judged = super().judge(view)
            return judged if where != "shape" else replace(judged, bad=judged.bad[:-1])

        def explain(self, found):
            return super().explain(found) if where != "explain" else 1 / 0

    engine = Rules([Broken()])
    engine.take(HIGH)
    engine.close()
    assert (engine.errors, engine.alerts) == (1, [])


def test_other_layers_begin_anew():
    layers = healthy(200)
    layers["norm"][:, 1] = 0.0
    engine = Rules([rules.Dead()])
    engine.take(block({"norm": layers["norm"][:100]}))
    more = np.concatenate((layers["norm"], layers["norm"]), 1)
    engine.take(block({"norm": more[100:]}, first=100))
    engine.close()
    # The alert on layer 1 goes on, and the new layer is told of.
    told = [(alert.layer, alert.step) for alert in engine.alerts]
    assert told == [("layer1.weight", 0), ("layer7.weight", 100)]
    assert engine.errors == 0


class TestJournal:
    def test_keeps_beginnings_and_ends(self, tmp_path):
        engine = Rules([High()], journal=AlertJournal(tmp_path))
        engine.take(of(0, 5, 6))
        assert read_alerts(tmp_path) == engine.alerts
        engine.take(of(0, 0, first=3))
        assert read_alerts(tmp_path) == engine.alerts
        assert engine.alerts[0].ended == 3

    def test_may_come_late(self, tmp_path):
        engine = Rules([High()])
        engine.take(of(0, 5, 6))
        engine.keep_in(AlertJournal(tmp_path))
        engine.take(of(0, 0, first=3))
        assert read_alerts(tmp_path) == engine.alerts

    @pytest.mark.parametrize("late", [False, True])
    @pytest.mark.parametrize(
        ("after", "ended"), [((0, 0, 0), 10), ((7, 7, 7, 0, 0), 13), ((7, 7), None)]
    )
    def test_a_resumed_run_goes_on_with_what_lasts(self, tmp_path, after, ended, late):
        first = Rules([High()], journal=AlertJournal(tmp_path))
        first.take(of(0, 5, 6, 5, 5))
        before = first.alerts[0]
        engine = Rules([High()])
        if late:
            engine.take(block({}, {"x": [1.0]}, names=("a", "b"), first=9))
        engine.keep_in(AlertJournal(tmp_path, resume_from=4))
        engine.take(of(*after, first=10))
        engine.close()
        assert read_alerts(tmp_path) == [replace(before, ended=ended)]

    def test_layers_and_groups_go_on_too(self, tmp_path):
        norm = healthy(300, layers=20)["norm"]
        norm[50:140, 3] = 0.0
        norm[70:150, 5:15] = 0.0
        first = Rules([rules.Dead()], journal=AlertJournal(tmp_path))
        first.take(block({"norm": norm[:120]}))
        assert [(a.layer, a.ended) for a in read_alerts(tmp_path)] == [
            ("layer3.weight", None),
            (None, None),
        ]
        second = Rules([rules.Dead()], journal=AlertJournal(tmp_path, resume_from=120))
        second.take(block({"norm": norm[120:]}, first=120))
        second.close()
        ends = [(a.layer, a.step, a.ended) for a in read_alerts(tmp_path)]
        assert ends == [("layer3.weight", 50, 140), (None, 70, 150)]
        assert second.errors == 0

    def test_of_layers_and_rules_that_are_no_more(self, tmp_path):
        with AlertJournal(tmp_path) as journal:
            for rule, layer in (("dead", "gone.weight"), ("of my own", None)):
                journal.write(Alert(rule, 1, layer, 0.0, "m", "a", "warning"))
        engine = Rules(journal=AlertJournal(tmp_path, resume_from=5))
        engine.take(block({"norm": healthy(100)["norm"]}, first=5))
        engine.close()
        assert [alert.ended for alert in read_alerts(tmp_path)] == [None, None]
        assert engine.errors == 0

    def test_an_error_that_persists_and_its_warning_go_on_as_two(self, tmp_path):
        layers = {"nonfinite": np.ones((60, 2))}
        layers["nonfinite"][40:] = 0
        first = Rules([rules.NonFinite()], journal=AlertJournal(tmp_path))
        first.take(block({"nonfinite": layers["nonfinite"][:20]}))
        second = Rules([rules.NonFinite()], journal=AlertJournal(tmp_path, resume_from=20))
        second.take(block({"nonfinite": layers["nonfinite"][20:]}, first=20))
        second.close()
        assert [(a.severity, a.ended) for a in read_alerts(tmp_path)] == [
            ("warning", 40),
            ("error", 40),
        ]


class TestNoStep:
    def test_goes_the_way_of_all_alerts(self, tmp_path, caplog):
        engine = Rules(journal=AlertJournal(tmp_path))
        late = {"step": 4, "backwards": 100.0, "seconds": 60.0, "usual": 1.0}
        engine.no_step(**late)
        assert engine.alerts == []
        engine.no_step(**late)
        assert names(engine.active) == ["no-step"]
        engine.no_step(**late | {"step": 5, "backwards": 0.0})
        [alert] = engine.alerts
        assert (alert.step, alert.ended) == (4, 5)
        assert read_alerts(tmp_path) == [alert]
        assert len([r for r in caplog.records if r.levelname == "WARNING"]) == 1

    def test_raises_at_the_next_delivery(self):
        engine = Rules([rules.NoStep(streak=1, action="raise")])
        engine.no_step(step=4, backwards=100, seconds=60.0, usual=1.0)
        with pytest.raises(GradientAlert):
            engine.deliver()

    def test_only_where_it_is_among_the_rules(self):
        engine = Rules([High()])
        for _ in range(5):
            engine.no_step(step=4, backwards=100, seconds=60.0, usual=1.0)
        assert engine.alerts == []


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr("gradwise.watch.rules.engine._MOST_KEPT", 20)
    layers = healthy(200)
    layers["norm"][:, 1] = 0.0
    engine = Rules([High(streak=1, calm=1), rules.Dead()])
    engine.take(block({"norm": layers["norm"]}))
    x = np.zeros(10_000)
    x[::100] = 5
    engine.take(of(*x, first=200))
    assert len(engine.alerts) == 20
    assert [alert.step for alert in engine.alerts[1:]] == [*range(8300, 10_200, 100)]
    assert engine.alerts[0].rule == "dead"  # it lasts


def test_many_threads_at_once():
    engine = Rules([High(action=lambda alert: None)])
    done = threading.Event()

    def read():
        while not done.is_set():
            assert all(alert.rule == "high" for alert in engine.alerts)
            engine.deliver()
            engine.no_step(step=1, backwards=1, seconds=0.0, usual=1.0)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for first in range(0, 20_000, 50):
        engine.take(of(*([5] * 25 + [0] * 25), first=first))
    done.set()
    for reader in readers:
        reader.join()
    assert len(engine.alerts) == 5  # each took twice as much calm to end
