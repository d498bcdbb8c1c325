//! Tests the tables on the terminal with numbers of any size: every cell of a row is present, and no two touch.

use serde_json::json;

use super::diff::{Diff, Distance, What};
use super::terminal::Heading;
use super::{diff, eval, terminal};
use crate::diagnosis::Report;
use crate::diagnosis::breakdown::{Breakdown, Cell};
use crate::diagnosis::by_quadrant::ByQuadrant;
use crate::diagnosis::learnt::{Group, Learnt, Verdict};
use crate::diagnosis::movement::{Change, Movement};
use crate::diagnosis::quadrants::{Thresholds, resolve};
use crate::diagnosis::summary::Summary;
use crate::eval::compare::{Comparison, Flips, GroupChange, MacroChange, MeanChange, MetricChange, TaskChange};
use crate::eval::results::{Scores, TaskScores};
use crate::eval::retention::{Retention, Run};
use crate::format::{count, number, percent, percent_with_interval, thousands};
use crate::random::SplitMix;
use crate::stats::Estimate;
use crate::table::Quadrant;

/// Generates numbers of all sizes.
struct Any(SplitMix);

impl Any {
    fn n(&mut self) -> u64 {
        let bits = self.0.below(50);
        self.0.next() >> (14 + bits)
    }

    fn real(&mut self) -> f64 {
        let exponent = self.0.below(20) as i32 - 8;
        (f64::from(self.0.below(2_000_001)) / 1e6 - 1.0) * 10f64.powi(exponent)
    }

    fn share(&mut self) -> f64 {
        let exponent = self.0.below(7) as i32;
        f64::from(self.0.below(1_000_001)) / 1e6 / 10f64.powi(exponent)
    }

    fn ends(&mut self, of: fn(&mut Any) -> f64) -> Option<[f64; 2]> {
        (self.0.below(4) > 0).then(|| [of(self), of(self)])
    }

    fn estimate(&mut self, of: fn(&mut Any) -> f64) -> Estimate {
        Estimate { value: of(self), stderr: Some(of(self).abs()), ci95: self.ends(of), interval: None }
    }

    fn mean(&mut self) -> MeanChange {
        MeanChange { before: self.share(), after: self.share(), difference: self.estimate(Any::share) }
    }

    fn average(&mut self) -> MacroChange {
        let MeanChange { before, after, difference } = self.mean();
        MacroChange { tasks: vec!["task".to_owned()], before, after, difference }
    }

    fn metric(&mut self) -> MetricChange {
        MetricChange {
            before: self.real(),
            after: self.real(),
            difference: self.estimate(Any::real),
            lower_is_better: self.0.below(2) > 0,
            is_share: self.0.below(2) > 0,
            p: Some(self.share()),
            p_holm: Some(self.share()),
        }
    }

    fn task(&mut self) -> TaskChange {
        TaskChange {
            n: self.n() as usize,
            n_groups: None,
            primary: "exact_match".to_owned(),
            metrics: [("exact_match".to_owned(), self.metric())].into(),
            mean_over_subjects: Some(self.mean()),
            flips: Some(Flips::default()),
            detectable_drop: None,
            items_only_before: Vec::new(),
            items_only_after: Vec::new(),
            data_differs: false,
            few_shot: None,
            prompts_differ: 0,
            whole_texts: false,
            examples_differ: None,
        }
    }

    fn group(&mut self, tasks: &[&str]) -> GroupChange {
        GroupChange {
            tasks: tasks.iter().map(|task| (*task).to_owned()).collect(),
            primary: "exact_match".to_owned(),
            n: 3,
            by_items: self.mean(),
            mean_over_tasks: self.mean(),
        }
    }
}

/// Calls `check` with several hundred sequences of random numbers.
fn for_any(check: impl Fn(&mut Any)) {
    (0..300).for_each(|seed| check(&mut Any(SplitMix(seed))));
}

/// The cells of the lines that begin with `begin`; cells are separated by two or more spaces and contain no two spaces in a row.
fn cells<'a>(text: &'a str, begin: &str) -> Vec<Vec<&'a str>> {
    let of_line = |line: &'a str| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
    text.lines().filter(|line| line.starts_with(begin)).map(of_line).collect()
}

fn diff_of(what: What, width: usize) -> String {
    let divergence = Distance::Unknown { unavailable: "not asked for".to_owned() };
    diff::terminal(&Diff { what, divergence, remarks: Vec::new() }, false, width)
}

#[test]
fn of_the_quadrants() {
    for_any(|any| {
        let cell = |any: &mut Any| Cell {
            tokens: any.n(),
            token_share: any.share(),
            token_share_ci95: any.ends(Any::share),
            loss_share: any.share(),
            grad_share: any.share(),
            ..Cell::default()
        };
        let quadrants = ByQuadrant::from_fn(|_| cell(any));
        let summary = Summary {
            thresholds: resolve(Thresholds::Fixed, &[]).unwrap(),
            tokens_between_groups: None,
            tokens_not_finite: any.n(),
            overall: Breakdown { quadrants, ..Breakdown::default() },
            sources: Vec::new(),
            turns: Vec::new(),
            frequent_tokens: ByQuadrant::default(),
            conflict_pairs: Vec::new(),
            conflict_rows: Vec::new(),
            surprises: Vec::new(),
            gates: Vec::new(),
        };
        let report = Report { summary, kinds: None, planted: None, bounded: None, on_policy: None, topk_fidelity: Vec::new() };
        let heading = Heading {
            data: "a.jsonl".to_owned(),
            model: "tiny".to_owned(),
            out: "out".to_owned(),
            rows: "3 rows".to_owned(),
            scored: 3,
            records: 3,
            tokens_per_second: 1.0,
            has_page: false,
        };
        let text = terminal::summary(&heading, &report, false);
        let n_left_out = report.summary.tokens_not_finite;
        assert_eq!(text.contains(&format!("{} left out of all numbers", count(n_left_out, "token"))), n_left_out > 0, "{text}");
        for quadrant in Quadrant::ALL {
            let Cell { tokens, token_share, token_share_ci95, loss_share, grad_share, .. } = *quadrants.get(quadrant);
            let name = terminal::name(quadrant);
            let share = percent_with_interval(token_share, token_share_ci95);
            let expected = [name.clone(), thousands(tokens), share, percent(loss_share), percent(grad_share)];
            assert_eq!(cells(&text, &(name + "  ")), [expected], "{text}");
        }
    });
}

#[test]
fn of_movements_and_what_was_learnt() {
    for_any(|any| {
        let mut group = |name: &str| Group {
            name: name.to_owned(),
            rows: any.n(),
            tokens: any.n(),
            loss_before: any.real(),
            loss_after: 0.0,
            change: any.estimate(Any::real),
            nats: any.real(),
            verdict: Some(Verdict::Hurt),
        };
        let long = "a source whose name is longer than a line of the terminal has room for, by far";
        let learnt =
            Learnt {
                overall: vec![group("all")], sources: vec![group(long), group("数据数据数据数据")], ..Learnt::default()
            };
        let change = |any: &mut Any| Change { tokens: any.n(), logprob: Some(any.real()), entropy: Some(any.real()) };
        let movement = Movement {
            before: "a".to_owned(),
            after: "b".to_owned(),
            tokens: any.n(),
            tokens_only_before: any.n(),
            tokens_only_after: any.n(),
            moved: [[(); 4]; 4].map(|row| row.map(|()| any.n())),
            by_quadrant: [(); 4].map(|()| change(any)),
            overall: change(any),
            learnt,
        };
        for width in [80, 120, usize::MAX] {
            let text = diff_of(What::Scores(movement.clone()), width);
            for quadrant in Quadrant::ALL {
                let found = cells(&text, &(terminal::name(quadrant) + "  "));
                assert_eq!(found.len(), 1, "{text}");
                assert_eq!(found[0].len(), 7, "{text}");
                assert_eq!(found[0][1..5], movement.moved[quadrant.index()].map(thousands), "{text}");
            }
            for (begin, group) in
                ["all  ", "source a", "source 数"].iter().zip([&movement.learnt.overall[..], &movement.learnt.sources].concat())
            {
                let found = cells(&text, begin);
                assert_eq!(found.len(), 1, "{text}");
                assert_eq!(found[0].len(), 7, "{text}");
                assert_eq!(found[0][1..3], [thousands(group.rows), thousands(group.tokens)], "{text}");
                assert_eq!(found[0][3], format!("{:.3}", group.loss_before), "{text}");
            }
        }
    });
}

#[test]
fn of_two_evaluations() {
    for_any(|any| {
        let comparison = Comparison {
            before: "a".to_owned(),
            after: "b".to_owned(),
            engines: None,
            tasks: [("one".to_owned(), any.task()), ("a_task_of_a_long_name".to_owned(), any.task())].into(),
            groups: [("group".to_owned(), any.group(&["one"]))].into(),
            macro_average: Some(any.average()),
            tasks_only_before: Vec::new(),
            tasks_only_after: Vec::new(),
            skipped: Vec::new(),
        };
        for (width, n_cells) in [(60, 6), (usize::MAX, 10)] {
            let text = diff_of(What::Evaluations(comparison.clone()), width);
            for (name, task) in &comparison.tasks {
                let found = cells(&text, name);
                let MetricChange { before, after, is_share, .. } = task.metrics["exact_match"];
                let (scale, digits) = if is_share { (100.0, 2) } else { (1.0, 4) };
                let numbers = [before, after].map(|value| number(scale * value, digits));
                assert_eq!(
                    found.iter().map(Vec::len).collect::<Vec<_>>(),
                    [n_cells, n_cells.min(6) - if width == 60 { 1 } else { 0 }],
                    "{text}"
                );
                assert_eq!(
                    found[0][1..5],
                    [task.n.to_string(), "exact_match".to_owned(), numbers[0].clone(), numbers[1].clone()],
                    "{text}"
                );
            }
            let of_group: Vec<usize> = cells(&text, "group").iter().map(Vec::len).collect();
            let of_average: Vec<usize> = cells(&text, "macro average").iter().map(Vec::len).collect();
            let n_cells = if width == 60 { 5 } else { 6 };
            assert_eq!((of_group, of_average), (vec![n_cells; 2], vec![n_cells]), "{text}");
        }
    });
}

#[test]
fn of_several_runs() {
    for_any(|any| {
        let nothing = Comparison {
            before: "a".to_owned(),
            after: "b".to_owned(),
            engines: None,
            tasks: [].into(),
            groups: [].into(),
            macro_average: None,
            tasks_only_before: Vec::new(),
            tasks_only_after: Vec::new(),
            skipped: Vec::new(),
        };
        let mut task = |n: usize| TaskChange { n, ..any.task() };
        // A group of two tasks and a task, and one that not all runs have.
        let tasks = [("g_1", 10), ("g_2", 20), ("t", 4000), ("other", 7)].map(|(name, n)| (name.to_owned(), task(n)));
        let own = task(5);
        let groups = [("g".to_owned(), any.group(&["g_1", "g_2"]))].into();
        let general_tasks = Comparison { tasks: tasks.into(), groups, ..nothing.clone() };
        let run = Run {
            name: "run".to_owned(),
            target: MacroChange { tasks: vec!["own".to_owned()], ..any.average() },
            general: MacroChange { tasks: vec!["g".to_owned(), "t".to_owned()], ..any.average() },
            target_groups: [].into(),
            target_tasks: Comparison { tasks: [("own".to_owned(), own)].into(), ..nothing },
            general_tasks,
        };
        let points = |average: &MacroChange| format!("{:+.2}", 100.0 * average.difference.value);
        let expected = [points(&run.target), points(&run.general)];
        let left_out = vec!["g_2".to_owned(), "other".to_owned()];
        let text = diff_of(What::Retention(Retention { before: "a".to_owned(), runs: vec![run], left_out }), 80);
        let found = cells(&text, "run  ");
        let [head, row] = &found[..] else { panic!("{text}") };
        assert_eq!((head.len(), row.len()), (7, 7), "{text}");
        assert_eq!([row[1], row[4]], expected, "{text}");
        assert_eq!([row[3], row[6]], ["5", "4,010"], "{text}");
    });
}

#[test]
fn of_an_evaluation() {
    for_any(|any| {
        let metrics = [("acc", any.estimate(Any::share)), ("word_perplexity", any.estimate(Any::real))];
        let task = json!({
            "n": any.n() + 3, "metrics": {}, "primary": "acc", "kind": "choice", "version": 1, "data": "a.jsonl", "data_sha256": "", "few_shot": 0,
            "limit": 3, "truncated": 1, "tokens": 1, "computed_tokens": 1, "seconds": 1.0,
        });
        let mut task: TaskScores = serde_json::from_value(task).unwrap();
        task.metrics = metrics.map(|(name, estimate)| (name.to_owned(), estimate)).into();
        task.mean_over_subjects = Some(any.estimate(Any::share));
        let scores = json!({
            "program": "diagnose", "version": "1", "command": "", "model": "tiny", "model_reference": "tiny", "model_sha256": "", "dtype": "f32",
            "kernels": "fused", "max_len": 8, "tasks": {},
        });
        let mut scores: Scores = serde_json::from_value(scores).unwrap();
        let n = task.n.to_string();
        scores.tasks = [("a_task".to_owned(), task)].into();
        let text = eval::table(&scores, "out", false);
        let first = &cells(&text, "a_task")[0];
        assert_eq!((&first[..3], first.len()), (&["a_task", &n, "acc"][..], 6), "{text}");
        let beneath: Vec<Vec<&str>> = cells(&text, "   ");
        let n_cells: Vec<usize> = beneath.iter().map(Vec::len).collect();
        assert_eq!(n_cells, [4, 4, 1, 1], "{text}");
        assert_eq!([beneath[0][0], beneath[1][0]], ["word_perplexity", "acc by subject"], "{text}");
    });
}
