//! Implements `diagnose check DATASET...`: formats, loss mask, audit and duplicates, without the weights.

use std::fmt::Write;
use std::path::PathBuf;

use super::models::ModelArgs;
use super::output;
use super::progress::Terminal;
use super::rows::RowArgs;
use crate::dataset::DataFile;
use crate::error::Result;
use crate::format::{count, counted, harmless, thousands};
use crate::jobs::check::{self, Checked, Job, Repeated};
use crate::spelling;

/// Check which tokens the loss mask covers, in seconds
///
/// Reads and renders every row with the model's tokenizer and chat template, without its weights, and prints formats, skipped rows with reasons,
/// the first rows with the supervised text highlighted, lengths, duplicates, prompts with contradictory answers, and the mask audit.
#[derive(clap::Args)]
#[command(mut_arg("model", |model| model.help(
    "The model to train: a Hugging Face folder (its weights may be missing), a .gguf file, an adapter folder, or a hub id"
)))]
pub(super) struct Args {
    /// Data files, folders, globs, or `-` for standard input
    #[arg(required = true, value_name = "DATASET")]
    datasets: Vec<String>,

    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    rows: RowArgs,

    /// TOML file with options of `diagnose DATASET`; those about rows are used [default: diagnose.toml beside the data]
    #[arg(long, value_name = "FILE")]
    #[allow(dead_code, reason = "config.rs reads it before the rest is parsed")]
    config: Option<PathBuf>,

    /// How many rows to print, with the supervised text highlighted
    #[arg(long, value_name = "N", default_value_t = 2)]
    show: usize,

    /// Exit with code 3 on this finding, such as unused_switches, empty_mask, duplicates, or any
    #[arg(long, value_name = "FINDING", value_delimiter = ',')]
    fail_on: Vec<String>,

    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args) -> Result<()> {
    args.rows.refuse_lone_seed()?;
    let names = check::names();
    if let Some(unknown) = args.fail_on.iter().find(|name| !names.contains(name)) {
        let known: Vec<&str> = names.iter().map(String::as_str).collect();
        return Err(spelling::unknown("a finding behind --fail-on", unknown, &known));
    }
    let watch = Terminal::new();
    let job = Job {
        read: args.rows.read()?,
        render: args.rows.render()?,
        choice: args.rows.choice(),
        inputs: args.datasets,
        model: args.model.name(),
        max_len: args.rows.max_len(),
        shown: args.show,
    };
    let found = check::run(&job, &watch)?;
    drop(watch);
    let text = match args.json {
        true => output::json(&found)?,
        false => summary(&found, found.max_len, output::coloured()),
    };
    output::print(&text)?;
    found.fail_on(&args.fail_on)
}

fn summary(found: &Checked, max_len: usize, coloured: bool) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let mut line = |text: String| {
        let _ = writeln!(out, "{text}");
    };
    let of_file = |file: &DataFile| format!("{}: {}, {}", file.path.display(), file.format, count(file.bytes, "byte"));
    output::of_files(&found.files, of_file).into_iter().for_each(&mut line);
    line(format!(
        "{} read, {} with supervised tokens, {} without; {} of {} supervised by {}",
        count(found.records, "row"),
        thousands(found.rows),
        thousands(found.records - found.rows),
        thousands(found.supervised),
        counted(found.tokens, "token is", "tokens are"),
        found.model
    ));
    let [least, quarter, middle, three, most95, most99, most] = found.lengths;
    line(format!(
        "tokens a row: {least} to {most}, quartiles {quarter}, {middle}, {three}; 95 % up to {most95}, 99 % up to {most99}; --max-len {max_len}"
    ));
    for shown in &found.shown {
        line(format!("\n{}", shown.place));
        let marked = shown.pieces.iter().map(|piece| (piece.supervised, harmless(&piece.text, &[])));
        let marked = marked.map(|(supervised, text)| match (supervised, coloured) {
            (false, _) => text,
            (true, false) => format!("[[{text}]]"),
            (true, true) => format!("\x1b[32m[[{text}]]\x1b[0m"),
        });
        line(marked.collect::<String>().trim_end().to_owned());
    }
    line(String::new());
    let mut repeated = |one: &str, several: &str, repeated: &Repeated| {
        if repeated.rows > 0 {
            line(format!("{}. For example: {}", counted(repeated.rows, one, several), repeated.examples.join(", ")));
        }
    };
    repeated("row is equal to an earlier one", "rows are equal to an earlier one", &found.duplicates);
    let contradicts = |answer: &str| format!("{answer} the same prompt as an earlier one but a different answer");
    repeated(&contradicts("row has"), &contradicts("rows have"), &found.contradictions);
    let audit = found.audit.lines();
    if audit.is_empty() && found.findings().iter().all(|(_, rows)| *rows == 0) {
        line("The audit found nothing.".to_owned());
    }
    audit.into_iter().for_each(|text| line(output::fitted(&harmless(&text, &[]))));
    out
}
