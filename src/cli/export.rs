//! Implements `diagnose export RUN`: writes the data as changed by rules or decisions, or the model of a checkpoint or an adapter.

use std::fmt::Write;
use std::path::PathBuf;

use super::progress::Terminal;
use super::{output, runs};
use crate::dataset::write::Target;
use crate::diagnosis::gate::Gate;
use crate::error::{Error, Result};
use crate::format::{count, counted, thousands};
use crate::jobs::export::{self, DropRule, Exported, Job, MaskRule};
use crate::jobs::train;
use crate::jobs::watch::Watch;
use crate::model::Reference;

/// Write the data of a run with rows dropped, tokens masked or rows weighted, by rules or by your decisions
///
/// Rows keep their order and, with --format read, their format; JSON Lines rows without a decision stay the same to the byte.
/// NAME.changes.jsonl, beside the file, says for each changed row what was done and why. If the format cannot express a row, that is an
/// error and no file is written; rows that the run did not read are counted and not written. `diagnose train` and the trainers named by the format honour the masks.
///
/// For a checkpoint of a training run (RUN/checkpoints/step-NNNNNNNN.safetensors), writes the model as `model/` or `adapter/` in the
/// folder --out, for use with any --model. For a LoRA adapter's folder, writes the merged model as `model/` there, in f32.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Folder of a finished score run, or those of its shards; or a checkpoint of a training run; or a LoRA adapter's folder
    #[arg(required = true, value_name = "RUN")]
    run: Vec<PathBuf>,

    /// Format to write: read (as it was read), messages, sharegpt, alpaca, llama-factory, axolotl, trl
    #[arg(long, default_value = "read")]
    format: Target,

    /// File to write: Parquet if it ends in .parquet, otherwise JSON Lines; for a checkpoint or an adapter, a folder
    #[arg(long, value_name = "FILE")]
    out: PathBuf,

    /// Rows to drop: mass=NATS (conflict mass of NATS or more), kind=KIND, rows=7,12, inexpressible (what the format cannot express)
    #[arg(long, value_name = "RULE")]
    drop: Vec<DropRule>,

    /// Tokens to exclude from the loss: conflicts, kind=KIND, or turn-mass=NATS (whole turns)
    #[arg(long, value_name = "RULE")]
    mask: Vec<MaskRule>,

    /// Weight each row by the mean weight that a gate, such as eaft, gives its tokens
    #[arg(long, value_name = "GATE")]
    weight: Option<Gate>,

    /// Keep the N rows that teach most per conflict: nats of uncertain tokens over one more than the number of conflicts
    #[arg(long, value_name = "N")]
    select: Option<usize>,

    /// Your decisions: decisions.jsonl from `diagnose view`; rules do not change rows that you decided to keep
    #[arg(long, value_name = "FILE")]
    decisions: Option<PathBuf>,

    /// Also write the answers with conflicts to this file, with the model's own choice and an empty field for a better text
    #[arg(long, value_name = "FILE")]
    rewrite_candidates: Option<PathBuf>,

    /// Current paths of the data files, in order [default: their recorded names]
    #[arg(long, value_name = "FILE")]
    data: Vec<String>,

    /// For an adapter: its base model, instead of the one named in its config
    #[arg(long, value_name = "REF")]
    base: Option<String>,

    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args, command_line: &str) -> Result<()> {
    if let [checkpoint] = &args.run[..]
        && checkpoint.is_file()
        && checkpoint.extension().is_some_and(|extension| extension == "safetensors")
    {
        return model_of(&args, &format!("{} is a checkpoint", checkpoint.display()), &|watch| {
            refuse_base(&args)?;
            train::export_checkpoint(checkpoint, &args.out, watch)
        });
    }
    if args.select == Some(0) {
        return Err(Error::usage("--select 0 keeps no row; expected 1 or more"));
    }
    if let [adapter] = &args.run[..]
        && Reference::holds_adapter(adapter)
    {
        return model_of(&args, &format!("{} is an adapter", adapter.display()), &|watch| {
            train::merge_adapter(adapter, args.base.clone(), &args.out, watch)
        });
    }
    refuse_base(&args)?;
    let job = Job {
        run: runs::one(&args.run, command_line)?,
        data: args.data,
        target: args.format,
        out: args.out,
        drop: args.drop,
        mask: args.mask,
        weight: args.weight,
        select: args.select,
        decisions: args.decisions,
        rewrite: args.rewrite_candidates,
        command: command_line.to_owned(),
    };
    let exported = export::export(&job)?;
    let text = match args.json {
        true => output::json(&exported)?,
        false => summary(&exported),
    };
    output::print(&text)
}

fn refuse_base(args: &Args) -> Result<()> {
    match &args.base {
        Some(base) => Err(Error::usage(format!("--base {base} names the base model of an adapter, but no adapter is exported"))
            .cure("Leave it out, or name an adapter's folder.")),
        None => Ok(()),
    }
}

/// Exports a model with `write`; refuses options that apply to data.
fn model_of(args: &Args, what: &str, write: &dyn Fn(&dyn Watch) -> Result<PathBuf>) -> Result<()> {
    let has_rule = !args.drop.is_empty() || !args.mask.is_empty() || args.weight.is_some() || args.select.is_some();
    let of_data = args.decisions.is_some() || args.rewrite_candidates.is_some() || !args.data.is_empty();
    if has_rule || of_data || args.format != Target::Read {
        return Err(Error::usage(format!("{what}, which takes only --out"))
            .cure("Leave the other options out, or name the folder of a score run."));
    }
    let watch = Terminal::new();
    let model = write(&watch)?;
    drop(watch);
    output::print(&match args.json {
        true => format!("{}\n", serde_json::json!({ "model": model })),
        false => format!("model    {0}\nUse it with --model {0}\n", model.display()),
    })
}

fn summary(exported: &Exported) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let mut line = |text: String| {
        let _ = writeln!(out, "{text}");
    };
    line(format!(
        "{} of {} written: {} dropped, {} masked, {} weighted",
        thousands(exported.rows_written),
        count(exported.rows_read, "row"),
        thousands(exported.rows_dropped),
        thousands(exported.rows_masked),
        thousands(exported.rows_weighted)
    ));
    if exported.rows_not_read > 0 {
        line(format!(
            "{} not read by the run (--limit, --sample or --shard), and not written",
            counted(exported.rows_not_read, "row of the data was", "rows of the data were")
        ));
    }
    if let Some(thresholds) = &exported.thresholds {
        line(format!("conflicts are those under the run's thresholds: {thresholds}"));
    }
    let (unreadable, left_out) = (exported.unreadable, exported.unreadable_left_out);
    if unreadable > left_out {
        let (one, several) =
            ("record could not be read, and is written unchanged", "records could not be read, and are written unchanged");
        line(counted(unreadable - left_out, one, several));
    }
    if left_out > 0 {
        line(format!(
            "{} left out: only JSON Lines are copied unchanged, with --format read",
            counted(left_out, "record could not be read, and is", "records could not be read, and are")
        ));
    }
    if exported.conflicts_beside_content > 0 {
        line(format!(
            "{} outside the content (reasoning, tool calls or the template), which cannot be masked one by one: --mask turn-mass=NATS masks whole \
             turns, --drop removes rows",
            counted(exported.conflicts_beside_content, "conflict is a token", "conflicts are tokens")
        ));
    }
    if !exported.columns_left_out.is_empty() {
        let columns: Vec<&str> = exported.columns_left_out.iter().map(String::as_str).collect();
        line(format!("left out, as the format has no place for it or its type is not supported: {}", columns.join(", ")));
    }
    exported.notes.iter().for_each(|note| line(note.clone()));
    line(format!("data     {}", exported.out.display()));
    line(format!("changes  {}", exported.changes.display()));
    if let Some(path) = &exported.beside {
        line(format!("for the trainer  {}", path.display()));
    }
    if let Some(path) = &exported.rewrite {
        line(format!("{} to write anew  {}", count(exported.candidates, "answer"), path.display()));
    }
    out
}
