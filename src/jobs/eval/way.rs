//! How a model is asked, as the user says it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::engine::generate::Sampling;
use crate::error::{Error, Result};
use crate::eval::asking::{Asking, Chat};
use crate::eval::results::{Chosen, Settings};
use crate::eval::tasks::{Kind, Task};
use crate::eval::write::Writing;
use crate::kernels::{Dtype, Kernels};
use crate::model::{LoadOptions, Placement, Reference, text_of};
use crate::random;
use crate::tokens::{RenderOptions, Renderer};

/// How a model is asked.
#[derive(Debug, Clone)]
pub(crate) struct Way {
    /// The first so many items of each task, or so many at random; of each subject, where a task has some.
    pub limit: Option<usize>,
    pub sample: Option<usize>,
    /// Examples before every question; `None` for as many as the task is known with.
    pub few_shot: Option<usize>,
    /// The file whose first rows they are, in the place of the task's own.
    pub few_shot_from: Option<PathBuf>,
    /// Of the draws of the examples, of the sample and of answers.
    pub seed: u64,
    pub system: Option<String>,
    /// `None`: without a chat template.
    pub chat: Option<ChatWay>,
    pub written: WrittenWay,
    pub dtype: Dtype,
    pub kernels: Kernels,
    pub device: Placement,
    /// Tokens that go into the model at once; also the length of the windows of a text. `None` for the usual length, or what the model
    /// takes if that is less.
    pub max_len: Option<usize>,
}

/// By a chat template.
#[derive(Debug, Clone)]
pub(crate) struct ChatWay {
    /// In the place of the model's own.
    pub template: Option<PathBuf>,
    /// JSON object of variables for the template.
    pub switches: Option<Value>,
    /// Examples are turns of their own.
    pub multiturn: bool,
}

/// How answers are written, where the model writes.
#[derive(Debug, Clone)]
pub(crate) struct WrittenWay {
    /// `None`: the task's own.
    pub max_new_tokens: Option<usize>,
    pub sampling: Sampling,
    /// Beside the task's own.
    pub stops: Vec<String>,
    /// Answers to each question.
    pub repeats: u32,
    /// Answers under way at a time.
    pub at_once: usize,
}

impl Default for WrittenWay {
    fn default() -> WrittenWay {
        WrittenWay { max_new_tokens: None, sampling: Sampling::GREEDY, stops: Vec::new(), repeats: 1, at_once: 16 }
    }
}

impl Way {
    /// Leaves the items that are to be evaluated.
    pub(super) fn choose(&self, task: &mut Task) {
        let mut subjects: BTreeMap<Option<&str>, Vec<usize>> = BTreeMap::new();
        for (idx, item) in task.items.iter().enumerate() {
            subjects.entry(item.subject.as_deref()).or_default().push(idx);
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

    /// What of it a task's scores depend on, as they state it.
    fn chosen(&self) -> Chosen {
        Chosen { limit: self.limit, sample: self.sample, sample_seed: self.sample.map(|_| self.seed) }
    }

    /// How questions are put to this model.
    pub(super) fn asking(&self, reference: &Reference, tasks: &[Task], max_len: usize) -> Result<Asking> {
        let has_rows = tasks.iter().any(|task| task.kind == Kind::Rows);
        let rows = has_rows.then(|| self.rows(reference, max_len)).transpose()?;
        let Some(ChatWay { template: own, switches, multiturn }) = &self.chat else {
            return Ok(Asking { system: self.system.clone(), chat: None, rows });
        };
        let (tokenizer, template) = text_of(reference)?;
        if own.is_none() && template.is_none() {
            return Err(Error::usage(format!("{} has no chat template", reference.name))
                .cure("Give one by --chat-template FILE, or leave --apply-chat-template out."));
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

    /// How rows to learn from become tokens: through the model's own template or that of the questions, masked as training masks.
    fn rows(&self, reference: &Reference, max_len: usize) -> Result<Renderer> {
        let (tokenizer, template) = text_of(reference)?;
        let (chat_template, template_switches) =
            self.chat.as_ref().map(|chat| (chat.template.clone(), chat.switches.clone())).unwrap_or_default();
        let system = self.system.clone();
        let options = RenderOptions { system, max_len, chat_template, template_switches, ..RenderOptions::default() };
        Renderer::new(tokenizer, template, options)
    }

    /// All that decides the scores of a task beside the model and the data.
    pub(super) fn settings_of(&self, task: &Task, asking: &Asking) -> Settings {
        let WrittenWay { max_new_tokens, sampling, stops, repeats, .. } = &self.written;
        let writing = task.written.map(|spec| Writing::of(spec, *max_new_tokens, *sampling, stops, *repeats, self.seed));
        Settings::new(task, self.chosen(), asking, writing)
    }

    /// For the name of a folder: empty for all items without examples, asked as it goes without saying.
    pub(super) fn settings(&self, asking: &Asking) -> String {
        let option = |name: &str, n: Option<usize>| n.map(|n| format!("{name} {n}"));
        let examples = self.few_shot.filter(|n| *n > 0);
        let drawn = self.sample.or(examples).map(|_| self.seed as usize);
        let options =
            [option("limit", self.limit), option("sample", self.sample), option("fewshot", examples), option("seed", drawn)];
        let mut options: Vec<String> = options.into_iter().flatten().collect();
        options.extend(self.few_shot_from.as_ref().map(|path| format!("from {}", path.display())));
        // With examples of its own a task may tell one turn from several.
        options.extend(asking.asked(Kind::Written, true).words());
        let WrittenWay { max_new_tokens, sampling, stops, repeats, .. } = &self.written;
        options.extend(option("max new tokens", *max_new_tokens));
        if !sampling.is_greedy() {
            options.push(format!("{} {repeats} {}", json!(sampling), self.seed));
        }
        options.extend(stops.iter().map(|stop| format!("stop {stop:?}")));
        options.join(" ")
    }

    pub(super) fn load_options(&self) -> LoadOptions {
        LoadOptions { dtype: self.dtype, kernels: self.kernels, device: self.device }
    }
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
            dtype: Dtype::F32,
            kernels: Kernels::Fused,
            device: Placement::Cpu,
            max_len: Some(16),
        }
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
        // 20 of law, 20 of logic, 2 of virology.
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
        // Subjects have draws of their own, and seeds, too.
        let places = |subject| of(subject).iter().map(|id| id.parse::<usize>().unwrap() / 3).collect::<Vec<_>>();
        assert_ne!(places(0), places(1));
        assert_eq!(sampled, chosen(way(None, Some(5), 1)));
        assert_ne!(sampled, chosen(way(None, Some(5), 2)));
        let groups = parse("t", "t.jsonl", rows.as_bytes()).unwrap().items;
        assert_eq!((groups[3].group.as_deref(), groups[3].subject.as_deref()), (Some("1"), Some("law")));
    }
}
