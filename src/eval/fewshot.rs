//! Puts few-shot examples before every question.
//!
//! As in lm-evaluation-harness (`lm_eval/api/task.py`, `fewshot_context`), a question is never its own example. Unlike the
//! harness, which draws anew for each question, all questions of a subject share one seeded draw: the examples then form a prefix
//! that the engine computes once, and both sides of a comparison get the same examples. Python's random generator is not
//! reproduced.

use std::collections::BTreeMap;

use super::tasks::{Examples, FewShot, Item, Shot, Task, TaskKind};
use crate::error::{Error, Result};
use crate::random::{SplitMix, own_seed};

/// Separates a question from its answer, unless the item specifies otherwise.
const BEFORE_ANSWER: &str = " ";

/// Puts `n` examples before every item of the task.
pub fn apply(task: &mut Task, n: usize, seed: u64) -> Result<()> {
    if n == 0 {
        return Ok(());
    }
    if matches!(task.kind, TaskKind::Text | TaskKind::Rows) {
        return Err(Error::usage(format!("--fewshot is for questions, and `{}` has none", task.name))
            .cure("Evaluate texts and training rows in a separate command."));
    }
    check_written(task)?;
    let own;
    let (pool, is_drawn, file_sha256) = match &task.examples {
        Examples::Own => {
            own = task.items.clone();
            (&own, true, None)
        }
        Examples::Drawn(pool) => (pool, true, None),
        Examples::First(pool) => (pool, false, None),
        Examples::File(pool, sha256) => (pool, false, Some(sha256.clone())),
    };
    let mut subjects: BTreeMap<Option<&str>, Vec<&Item>> = BTreeMap::new();
    for example in pool {
        subjects.entry(example.subject.as_deref()).or_default().push(example);
    }
    if is_drawn {
        for (subject, examples) in &mut subjects {
            shuffle(examples, seed, subject.unwrap_or_default());
        }
    }
    for item in &mut task.items {
        let examples = subjects.get(&item.subject.as_deref()).map(Vec::as_slice).unwrap_or_default();
        let others = examples.iter().filter(|example| example.requests != item.requests).take(n);
        let shots: Vec<Shot> = others.map(|example| answered(task.kind, example)).collect();
        if shots.len() < n {
            let of = item.subject.as_ref().map_or_else(String::new, |subject| format!(" of `{subject}`"));
            return Err(Error::usage(format!(
                "--fewshot {n} asks for more examples than `{}`{of} has ({})",
                task.name,
                shots.len()
            ))
            .cure("Give a smaller --fewshot."));
        }
        item.examples = shots;
    }
    task.few_shot = FewShot { n: n as u32, seed: is_drawn.then_some(seed), file_sha256 };
    Ok(())
}

/// Returns an error if a question whose answer is written cannot serve as an example or have examples before it.
fn check_written(task: &Task) -> Result<()> {
    if task.kind != TaskKind::Written {
        return Ok(());
    }
    let pool = match &task.examples {
        Examples::Own => &task.items,
        Examples::Drawn(pool) | Examples::First(pool) | Examples::File(pool, _) => pool,
    };
    let is_conversation = |item: &&Item| item.written.as_ref().is_some_and(|question| question.messages.is_some());
    let by_messages = pool.iter().chain(&task.items).find(is_conversation).map(|item| (item, "asks by `messages`"));
    let unanswered =
        || pool.iter().find(|item| item.requests[0].continuation.is_empty()).map(|item| (item, "has no answer to show"));
    match by_messages.or_else(unanswered) {
        Some((item, what)) => Err(Error::usage(format!(
            "--fewshot needs questions with a prompt and an answer, but item `{}` of `{}` {what}",
            item.id, task.name
        ))
        .cure("Give --fewshot 0.")),
        None => Ok(()),
    }
}

fn answered(kind: TaskKind, example: &Item) -> Shot {
    let request = &example.requests[example.answer];
    // In the harness, the last word of a passage has its own space.
    let answer = if kind == TaskKind::LastWord { &request.continuation } else { request.choice() };
    let between = match kind {
        TaskKind::Choice | TaskKind::Partial => request.continuation.strip_suffix(answer).unwrap_or_default(),
        _ => BEFORE_ANSWER,
    };
    Shot { question: request.context.clone(), between: between.to_owned(), answer: answer.to_owned() }
}

/// A Fisher-Yates shuffle; each subject has its own order.
fn shuffle(examples: &mut [&Item], seed: u64, subject: &str) {
    let mut random = SplitMix(seed ^ own_seed(subject));
    for idx in (1..examples.len()).rev() {
        examples.swap(idx, random.below(idx as u32 + 1) as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tasks::parse;
    use super::*;

    fn task(n: usize) -> Task {
        let row = |i: usize| {
            format!("{{\"context\":\"Q{i}\",\"choices\":[\"a{i}\",\"b{i}\"],\"answer\":{},\"subject\":\"{}\"}}\n", i % 2, i % 2)
        };
        parse("t", "t.jsonl", (0..n).map(row).collect::<String>().as_bytes()).unwrap()
    }

    #[test]
    fn the_examples_are_others_of_the_subject_with_their_answers() {
        let mut with = task(12);
        apply(&mut with, 5, 3).unwrap();
        for (i, item) in with.items.iter().enumerate() {
            let examples: Vec<String> = item.examples.iter().map(|shot| format!("{} {}", shot.question, shot.answer)).collect();
            assert_eq!(examples.len(), 5);
            // Six items per subject, so that five examples are all the others.
            let mut expected: Vec<String> = (0..12)
                .filter(|&other| other != i && other % 2 == i % 2)
                .map(|other| format!("Q{other} {}{other}", ["a", "b"][other % 2]))
                .collect();
            expected.sort_unstable();
            let mut found = examples.clone();
            found.sort_unstable();
            assert_eq!(found, expected);
            assert_ne!(examples, found, "a draw is in no order");
        }
        assert!(apply(&mut task(12), 6, 3).unwrap_err().to_string().contains("more examples than `t` of `0` has (5)"));
    }

    #[test]
    fn the_seed_decides_and_most_items_share_their_examples() {
        let drawn = |seed: u64| {
            let mut task = task(200);
            apply(&mut task, 3, seed).unwrap();
            task.items
                .into_iter()
                .map(|item| item.examples.into_iter().map(|shot| shot.question).collect::<String>())
                .collect::<Vec<_>>()
        };
        let (first, again, other) = (drawn(1), drawn(1), drawn(2));
        assert!(first == again && first != other);
        let mut distinct = first.clone();
        distinct.sort_unstable();
        distinct.dedup();
        // Two subjects, each with a common set of three examples and three sets in which one of these is replaced.
        assert_eq!(distinct.len(), 8);
    }

    #[test]
    fn a_split_of_its_own_may_be_taken_in_order() {
        let mut task = task(4);
        task.examples = Examples::First(super::tests::task(8).items);
        apply(&mut task, 2, 9).unwrap();
        // Q0 is not an example for itself.
        let shot = |question: &str, answer: &str| Shot { question: question.into(), between: " ".into(), answer: answer.into() };
        assert_eq!(task.items[0].examples, [shot("Q2", "a2"), shot("Q4", "a4")]);
        assert_eq!(task.items[1].examples, [shot("Q3", "b3"), shot("Q5", "b5")]);
        assert_eq!(task.few_shot, FewShot { n: 2, seed: None, file_sha256: None });
        let mut text = parse("t", "t.txt", b"abc").unwrap();
        assert!(apply(&mut text, 1, 0).is_err() && apply(&mut text, 0, 0).is_ok());
    }

    #[test]
    fn what_is_written_needs_a_prompt_and_an_answer_to_be_an_example() {
        let parsed = |rows: &str| parse("t", "t.jsonl", rows.as_bytes()).unwrap();
        let mut task = parsed("{\"prompt\":\"Q0\",\"answers\":[\"a\",\"b\"]}\n{\"prompt\":\"Q1\",\"answer\":7}");
        apply(&mut task, 1, 1).unwrap();
        assert_eq!(task.items[1].examples, [Shot { question: "Q0".into(), between: " ".into(), answer: "a".into() }]);
        let mut talk = parsed("{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}],\"answer\":\"a\"}");
        assert!(apply(&mut talk, 1, 1).unwrap_err().to_string().contains("item `0` of `t` asks by `messages`"));
    }

    #[test]
    fn a_last_word_keeps_its_space() {
        let mut task = parse(
            "t",
            "t.jsonl",
            b"{\"context\":\"I saw the\",\"continuation\":\"sea\"}\n{\"context\":\"We\",\"continuation\":\"go\"}",
        )
        .unwrap();
        apply(&mut task, 1, 1).unwrap();
        assert_eq!(task.items[1].examples, [Shot { question: "I saw the".into(), between: " ".into(), answer: " sea".into() }]);
    }
}
