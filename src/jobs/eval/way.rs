//! Holds the settings by which a model is evaluated, as the user gives them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::desk::Answering;
use crate::engine::generate::Sampling;
use crate::error::{Error, Result};
use crate::eval::asking::{Asking, Chat};
use crate::eval::results::{Chosen, Settings};
use crate::eval::tasks::{Task, TaskKind};
use crate::eval::write::Writing;
use crate::model::{LoadOptions, Placement, Reference, text_of};
use crate::random;
use crate::tokens::{RenderOptions, Renderer};

/// The default seed, which equals that of lm-evaluation-harness.
pub(crate) const SEED: u64 = 1234;

/// The settings of an evaluation.
#[derive(Debug, Clone)]
pub(crate) struct Way {
    /// The number of first items to evaluate per task, or per subject where a task has subjects.
    pub limit: Option<usize>,
    /// The number of random items to evaluate per task, or per subject where a task has subjects.
    pub sample: Option<usize>,
    /// The number of examples before every question; `None` for the task's default.
    pub few_shot: Option<usize>,
    /// The file whose first rows serve as examples instead of the task's own.
    pub few_shot_from: Option<PathBuf>,
    /// The seed for examples, for the sample of items and for answers.
    pub seed: u64,
    /// The system message, if any.
    pub system: Option<String>,
    /// `None`: without a chat template.
    pub chat: Option<ChatWay>,
    /// How answers are generated.
    pub written: WrittenWay,
    /// How this program runs the model.
    pub load: LoadOptions,
    /// The longest sequence, which is also the window length for texts. `None` for the usual length, or less if the model takes less.
    pub max_len: Option<usize>,
}

/// How the chat template is applied to questions.
#[derive(Debug, Clone)]
pub(crate) struct ChatWay {
    /// A file with a template that replaces the model's own.
    pub template: Option<PathBuf>,
    /// A JSON object of variables for the template.
    pub switches: Option<Value>,
    /// Whether examples are separate turns.
    pub multiturn: bool,
}

/// How answers are generated.
#[derive(Debug, Clone)]
pub(crate) struct WrittenWay {
    /// `None` means the task's own limit.
    pub max_new_tokens: Option<usize>,
    /// How the next token is chosen.
    pub sampling: Sampling,
    /// Texts that end an answer, in addition to the task's own.
    pub stops: Vec<String>,
    /// The number of answers to each question.
    pub repeats: u32,
    /// The number of answers generated concurrently.
    pub at_once: usize,
}

impl Default for WrittenWay {
    fn default() -> WrittenWay {
        WrittenWay { max_new_tokens: None, sampling: Sampling::GREEDY, stops: Vec::new(), repeats: 1, at_once: 16 }
    }
}

impl Way {
    /// Keeps only the items to evaluate.
    pub(super) fn choose(&self, task: &mut Task) {
        let mut subjects: BTreeMap<Option<&str>, Vec<usize>> = BTreeMap::new();
        for (idx, item) in task.items.iter().enumerate() {
            // The sources of rows are no subjects to be weighed alike: a sample of rows stands for all of them.
            let subject = item.subject.as_deref().filter(|_| task.kind != TaskKind::Rows);
            subjects.entry(subject).or_default().push(idx);
        }
        let mut kept = vec![false; task.items.len()];
        for (subject, items) in subjects {
            let limited = items.len().min(self.limit.unwrap_or(usize::MAX)) as u32;
            let drawn = match self.sample {
                Some(n) => {
                    let seed = subject.map_or(self.seed, |subject| self.seed ^ random::own_seed(subject));
                    random::sample(seed, limited, u32::try_from(n).unwrap_or(u32::MAX))
                }
                None => (0..limited).collect(),
            };
            drawn.into_iter().for_each(|idx| kept[items[idx as usize]] = true);
        }
        let mut kept = kept.into_iter();
        task.items.retain(|_| kept.next() == Some(true));
    }

    /// The selection of items that scores depend on, as the scores record it.
    fn chosen(&self) -> Chosen {
        Chosen { limit: self.limit, sample: self.sample, sample_seed: self.sample.map(|_| self.seed) }
    }

    /// How questions are rendered for this model.
    pub(super) fn asking(&self, reference: &Reference, tasks: &[Task], max_len: usize) -> Result<Asking> {
        let has_rows = tasks.iter().any(|task| task.kind == TaskKind::Rows);
        let rows = has_rows.then(|| self.rows(reference, max_len)).transpose()?;
        let Some(ChatWay { template: own, switches, multiturn }) = &self.chat else {
            return Ok(Asking { system: self.system.clone(), chat: None, rows });
        };
        let (tokenizer, template) = text_of(reference)?;
        if own.is_none() && template.is_none() {
            return Err(Error::usage(format!("{} has no chat template", reference.name))
                .cure("Pass one with --chat-template FILE, or leave --apply-chat-template out."));
        }
        let (chat_template, template_switches) = (own.clone(), switches.clone());
        let renderer =
            Renderer::new(tokenizer, template, RenderOptions { chat_template, template_switches, ..RenderOptions::default() })?;
        Ok(Asking {
            system: self.system.clone(),
            chat: Some(Chat { renderer, multiturn: *multiturn, switches: switches.clone() }),
            rows,
        })
    }

    /// How rows are tokenized: through the model's own template or that of the questions, and masked as in training.
    fn rows(&self, reference: &Reference, max_len: usize) -> Result<Renderer> {
        let (tokenizer, template) = text_of(reference)?;
        let (chat_template, template_switches) =
            self.chat.as_ref().map(|chat| (chat.template.clone(), chat.switches.clone())).unwrap_or_default();
        let system = self.system.clone();
        let options = RenderOptions { system, max_len, chat_template, template_switches, ..RenderOptions::default() };
        Renderer::new(tokenizer, template, options)
    }

    /// Everything but the model and the data that determines the scores of a task.
    pub(super) fn settings_of(&self, task: &Task, asking: &Asking, answering: Option<&Answering>) -> Settings {
        // Without `..`, the compiler demands a decision for every new option. The options ignored here are part of `chosen`, of the task (the
        // examples), of `asking`, of `answering` (the sampling) or of the identity of the folder (how the model runs), or do not affect scores.
        let Way {
            limit: _,
            sample: _,
            few_shot: _,
            few_shot_from: _,
            seed,
            system: _,
            chat: _,
            written: WrittenWay { max_new_tokens, sampling: _, stops, repeats, at_once: _ },
            load: _,
            max_len: _,
        } = self;
        let writing = task.written.zip(answering).map(|(spec, Answering { ends, sampling })| Writing {
            ends: ends.clone(),
            ..Writing::of(spec, *max_new_tokens, *sampling, stops, *repeats, *seed)
        });
        Settings::new(task, self.chosen(), asking, writing)
    }

    /// The settings in words, for the name of a folder; empty for the defaults: all items, no examples, questions without a template.
    pub(super) fn settings(&self, asking: &Asking, tasks: &[Task]) -> String {
        let option = |name: &str, n: Option<usize>| n.map(|n| format!("{name} {n}"));
        let draws_examples = tasks.iter().any(|task| task.few_shot.seed.is_some());
        let drawn = (self.sample.is_some() || draws_examples).then_some(self.seed as usize);
        // Zero examples is also a choice, where a task has some by default.
        let options =
            [option("limit", self.limit), option("sample", self.sample), option("fewshot", self.few_shot), option("seed", drawn)];
        let mut options: Vec<String> = options.into_iter().flatten().collect();
        options.extend(tasks.iter().filter_map(|task| Some(format!("from {}", task.few_shot.file_sha256.as_ref()?))));
        // A task with its own examples may render several turns differently from one.
        options.extend(asking.asked(TaskKind::Written, true).words());
        let WrittenWay { max_new_tokens, sampling, stops, repeats, .. } = &self.written;
        options.extend(option("max new tokens", *max_new_tokens));
        if !sampling.is_greedy() {
            options.push(format!("{} {repeats} {}", json!(sampling), self.seed));
        } else if let Some(penalty) = sampling.repetition_penalty {
            options.push(format!("repetition penalty {penalty}"));
        }
        options.extend(stops.iter().map(|stop| format!("stop {stop:?}")));
        options.join(" ")
    }

    /// Returns an error for an option that does not affect the scores of these tasks.
    pub(super) fn check_says(&self, tasks: &[Task]) -> Result<()> {
        self.check_asks(tasks)?;
        let (own, plain) = (&self.written, WrittenWay::default());
        let given = [
            ("--max-new-tokens", own.max_new_tokens.is_some()),
            ("--repetition-penalty", own.sampling.repetition_penalty.is_some()),
            ("--temperature", own.sampling != plain.sampling),
            ("--stop", !own.stops.is_empty()),
            ("--batch", own.at_once != plain.at_once),
        ];
        match given.iter().find(|(_, is_given)| *is_given && !writes(tasks)) {
            Some((option, _)) => {
                let names: Vec<&str> = tasks.iter().map(|task| task.name.as_str()).collect();
                Err(Error::usage(format!("{option} has no effect: the model does not write answers in {}", names.join(", ")))
                    .cure("Leave it out, or add a task with written answers, such as gsm8k or your own questions with `answer`."))
            }
            None => Ok(()),
        }
    }

    /// Returns an error for an option about questions, examples or sampling where there are none.
    fn check_asks(&self, tasks: &[Task]) -> Result<()> {
        let reads_texts = tasks.iter().all(|task| task.kind == TaskKind::Text);
        let texts = "texts are read as they are, in windows";
        let has_examples = tasks.iter().any(|task| task.few_shot.n > 0);
        let draws = self.sample.is_some()
            || tasks.iter().any(|task| task.few_shot.seed.is_some())
            || (writes(tasks) && !self.written.sampling.is_greedy());
        let (chat, as_one) = (self.chat.as_ref(), self.chat.as_ref().is_some_and(|chat| !chat.multiturn));
        let given = [
            ("--system", self.system.is_some() && reads_texts, texts),
            ("--chat-template", chat.is_some_and(|chat| chat.template.is_some()) && reads_texts, texts),
            ("--apply-chat-template", chat.is_some() && reads_texts, texts),
            ("--fewshot-as-multiturn false", as_one && !has_examples, "no question has examples before it"),
            ("--seed", self.seed != SEED && !draws, "neither items nor examples nor answers are drawn"),
        ];
        match given.into_iter().find(|(_, is_idle, _)| *is_idle) {
            Some((option, _, why)) => Err(Error::usage(format!("{option} has no effect: {why}")).cure("Leave it out.")),
            None => Ok(()),
        }
    }

    /// How the model is loaded and placed for these tasks. Returns an error if it cannot generate answers there.
    pub(super) fn load_options_of(&self, tasks: &[Task]) -> Result<LoadOptions> {
        match self.load.device {
            Placement::Metal if writes(tasks) => {
                Err(Error::usage("answers are written on the CPU or on an NVIDIA GPU, not on `metal`")
                    .cure("Leave --device out, or evaluate the tasks without written answers in a separate command."))
            }
            _ => Ok(self.load),
        }
    }
}

/// Whether the model generates answers for any of the tasks.
pub(super) fn writes(tasks: &[Task]) -> bool {
    tasks.iter().any(|task| task.kind == TaskKind::Written)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::tasks::parse;

    fn way(limit: Option<usize>, sample: Option<usize>, seed: u64) -> Way {
        Way {
            limit,
            sample,
            few_shot: None,
            few_shot_from: None,
            seed,
            system: None,
            chat: None,
            written: WrittenWay::default(),
            load: LoadOptions { device: Placement::Cpu, ..LoadOptions::default() },
            max_len: Some(16),
        }
    }

    #[test]
    fn answers_are_written_wherever_the_model_runs_but_on_metal() {
        let written = || parse("w", "w.jsonl", br#"{"prompt":"a","answer":"b"}"#).unwrap();
        let text = || parse("t", "t.txt", b"abc").unwrap();
        let placed = |device: Placement, tasks: &[Task]| {
            let load = LoadOptions { device, ..LoadOptions::default() };
            Way { load, ..way(None, None, 1) }.load_options_of(tasks).map(|options| options.device)
        };
        for device in [Placement::Auto, Placement::Cpu, Placement::Cuda] {
            assert_eq!(placed(device, &[text(), written()]).unwrap(), device);
        }
        assert_eq!(placed(Placement::Metal, &[text()]).unwrap(), Placement::Metal);
        assert!(placed(Placement::Metal, &[text(), written()]).unwrap_err().to_string().contains("not on `metal`"));
    }

    #[test]
    fn settings_of_written_tasks_tell_what_the_model_does_by_itself() {
        let task = parse("w", "w.jsonl", br#"{"prompt":"a","answer":"b"}"#).unwrap();
        let of = |ends: &[u32], repetition_penalty: Option<f64>| {
            let answering = Answering { ends: ends.to_vec(), sampling: Sampling { repetition_penalty, ..Sampling::GREEDY } };
            way(None, None, 1).settings_of(&task, &Asking::default(), Some(&answering))
        };
        for (one, other) in [(of(&[2], None), of(&[2, 7], None)), (of(&[2], None), of(&[2], Some(1.1)))] {
            assert_ne!(one, other);
            assert_ne!(one.to_string(), other.to_string());
        }
    }

    #[test]
    fn a_folder_is_named_after_examples_and_their_seed() {
        let row = |i: usize| format!("{{\"context\":\"Q{i}\",\"choices\":[\"a\",\"b\"],\"answer\":0}}\n");
        let name = |few_shot: Option<usize>, n: usize, seed: u64| {
            let mut task = parse("t", "t.jsonl", (0..4).map(row).collect::<String>().as_bytes()).unwrap();
            crate::eval::fewshot::apply(&mut task, n, seed).unwrap();
            Way { few_shot, ..way(None, None, seed) }.settings(&Asking::default(), &[task])
        };
        assert_ne!(name(None, 0, 1), name(Some(0), 0, 1));
        // A task's default examples are also drawn at random.
        assert_ne!(name(None, 2, 1), name(None, 2, 2));
        assert_eq!(name(None, 0, 1), name(None, 0, 2));
    }

    #[test]
    fn a_limit_and_a_sample_are_of_each_subject() {
        let row = |i: usize| {
            let subject = ["law", "logic", "virology"][i % 3];
            format!(
                "{{\"id\":{i},\"context\":\"c\",\"choices\":[\"a\",\"b\"],\"answer\":0,\"subject\":\"{subject}\",\"group\":{}}}\n",
                i / 2
            )
        };
        // There are 20 rows of law, 20 of logic and 2 of virology.
        let rows: String = (0..60).filter(|i| i % 3 < 2 || *i < 6).map(row).collect();
        let chosen = |way: Way| -> Vec<String> {
            let mut task = parse("t", "t.jsonl", rows.as_bytes()).unwrap();
            way.choose(&mut task);
            task.items.into_iter().map(|item| item.id).collect()
        };
        assert_eq!(chosen(way(Some(3), None, 1)), ["0", "1", "2", "3", "4", "5", "6", "7"]);
        let sampled = chosen(way(None, Some(5), 1));
        let of = |subject: usize| sampled.iter().filter(|id| id.parse::<usize>().unwrap() % 3 == subject).collect::<Vec<_>>();
        assert_eq!((of(0).len(), of(1).len(), of(2).len()), (5, 5, 2));
        // Each subject has its own draw, and so does each seed.
        let places = |subject| of(subject).iter().map(|id| id.parse::<usize>().unwrap() / 3).collect::<Vec<_>>();
        assert_ne!(places(0), places(1));
        assert_eq!(sampled, chosen(way(None, Some(5), 1)));
        assert_ne!(sampled, chosen(way(None, Some(5), 2)));
        let groups = parse("t", "t.jsonl", rows.as_bytes()).unwrap().items;
        assert_eq!((groups[3].group.as_deref(), groups[3].subject.as_deref()), (Some("1"), Some("law")));
    }
}
