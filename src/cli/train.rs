//! Implements `diagnose train DATASET...`: fine-tunes with EAFT or a loss that it is compared with.

use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args as _, Command, FromArgMatches};
use serde_json::{Value, json};

use super::output::{self, quoted};
use super::progress::Terminal;
use super::rows::RowArgs;
use crate::diagnosis::gate::method_names;
use crate::error::{Error, Result};
use crate::format::{count, divergence, n_tokens, number_with_interval, thousands};
use crate::jobs::train::{self, Job, Outcome, Plan, Program, TrainRecord};
use crate::train::declared::{Declared, OptionGroup, ValueKind};
use crate::train::elsewhere::{answered_names, other_names, our_name};
use crate::train::options::{DECLARED, Options};

/// Fine-tune a model on the data: all weights or LoRA adapters, with EAFT or another loss
#[derive(clap::Args)]
#[command(
    after_help = "Every option can be set in the --config file, under its name without the dashes. --list-options also shows \
                        expert options. The option names of Transformers, LLaMA-Factory and axolotl are accepted too."
)]
pub(super) struct Args {
    #[command(flatten)]
    typed: Typed,

    /// Options from a TOML or YAML file; the command line overrides it
    #[arg(long, value_name = "FILE", help_heading = "Run")]
    config: Option<PathBuf>,

    /// Set any option, such as `--set beta2=0.95`; repeatable
    #[arg(long, value_name = "OPTION=VALUE", help_heading = "Run")]
    set: Vec<String>,

    /// Show all options, expert options included
    #[arg(long, help_heading = "Run")]
    list_options: bool,

    /// Print the plan (steps, tokens, memory) without scoring, training or writing anything
    #[arg(long, help_heading = "Run")]
    dry_run: bool,

    /// Write the same training as a configuration for llama-factory or axolotl into --out, without training
    #[arg(long, value_name = "PROGRAM", help_heading = "Run")]
    emit: Option<Program>,

    /// Fail if --out has no checkpoint to resume from (the same command always resumes from one)
    #[arg(long, help_heading = "Run")]
    resume: bool,

    /// Print the result as JSON
    #[arg(long, help_heading = "Run")]
    json: bool,
}

/// The typed values of the options that `train::options` declares.
struct Typed(Vec<(String, Vec<String>)>);

impl clap::Args for Typed {
    fn augment_args(command: Command) -> Command {
        let command = DECLARED.iter().fold(command, |command, declared| command.arg(argument(declared)));
        answered_names().fold(command, |command, name| {
            let dashed = name.contains('_').then(|| name.replace('_', "-"));
            let argument = Arg::new(name).long(name).aliases(dashed).hide(true);
            command.arg(argument.num_args(0..).allow_hyphen_values(true).action(ArgAction::Append))
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Typed::augment_args(command)
    }
}

impl FromArgMatches for Typed {
    fn from_arg_matches(matches: &ArgMatches) -> clap::error::Result<Typed> {
        let typed = |name: &str| {
            let texts = || matches.get_many::<String>(name).map(|texts| texts.cloned().collect()).unwrap_or_default();
            let is_switch = DECLARED.iter().any(|declared| declared.name() == name && declared.kind == ValueKind::Switch);
            let texts = if is_switch { vec![matches.get_flag(name).to_string()] } else { texts() };
            (name.to_owned(), texts)
        };
        let was_typed = |name: &str| matches.value_source(name) == Some(ValueSource::CommandLine);
        let names = DECLARED.iter().map(Declared::name).chain(answered_names().map(str::to_owned));
        Ok(Typed(names.filter(|name| was_typed(name)).map(|name| typed(&name)).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> clap::error::Result<()> {
        *self = Typed::from_arg_matches(matches)?;
        Ok(())
    }
}

fn argument(declared: &Declared) -> Arg {
    let name = declared.name();
    let argument = Arg::new(name.clone()).help(help(declared)).help_heading(declared.group.title());
    let argument = match declared.kind {
        ValueKind::Switch => argument.action(ArgAction::SetTrue),
        ValueKind::Texts | ValueKind::Numbers => argument.action(ArgAction::Append).value_name("NAME"),
        ValueKind::Whole => argument.value_name("N"),
        ValueKind::Number => argument.value_name("NUMBER"),
        ValueKind::Text => argument.value_name("TEXT"),
    };
    if name == "datasets" {
        return argument.value_name("DATASET").num_args(0..).help_heading("Data");
    }
    let others = other_names(&name).flat_map(|theirs| [theirs.to_owned(), theirs.replace('_', "-")]);
    let aliases = others.chain([name.replace('-', "_")]).filter(|alias| *alias != name);
    let aliases: Vec<String> = aliases.collect();
    argument.long(name).aliases(aliases).allow_negative_numbers(true).hide(declared.group == OptionGroup::Expert)
}

/// The help of an option, with its default unless the text states it.
fn help(declared: &Declared) -> String {
    let text = declared.help().replace("METHODS", &method_names());
    match default_of(declared) {
        Some(default) if !text.contains("[default:") => format!("{} [default: {default}].", text.trim_end_matches('.')),
        _ => text,
    }
}

/// The default of an option, unless it is `no` or `none`.
fn default_of(declared: &Declared) -> Option<String> {
    let defaults = toml::Table::try_from(Options::default()).ok()?;
    match defaults.get(&declared.name())? {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(format!("{number:?}")),
        _ => None,
    }
}

/// Every option with its help, by group.
fn all_options() -> String {
    let mut text = String::new();
    for group in OptionGroup::ALL {
        text += &format!("{}:\n", group.title());
        for declared in DECLARED.iter().filter(|declared| declared.group == group) {
            text += &format!("  {:<18} {}\n", declared.name(), help(declared));
        }
    }
    text
}

/// The same, as JSON.
fn options_as_json() -> Result<String> {
    let of_group = |group: OptionGroup| DECLARED.iter().filter(move |declared| declared.group == group);
    let options: Vec<Value> = OptionGroup::ALL
        .into_iter()
        .flat_map(of_group)
        .map(|declared| json!({"option": declared.name(), "group": declared.group.title(), "help": help(declared)}))
        .collect();
    output::json(&options)
}

/// The typed options as a table.
fn overrides(typed: &Typed, set: &[String]) -> Result<toml::Table> {
    let mut table = toml::Table::new();
    let declared = |name: &str| DECLARED.iter().find(|declared| declared.name() == name);
    for (name, texts) in &typed.0 {
        let name = our_name(name)?;
        for text in texts {
            declared(&name).map_or(Ok(()), |declared| declared.add(&mut table, text))?;
        }
    }
    for text in set {
        let wrong = || Error::usage(format!("--set {text}: expected OPTION=VALUE, such as beta2=0.95"));
        let (name, value) = text.split_once('=').ok_or_else(wrong)?;
        let name = our_name(name.trim())?;
        let declared = declared(&name).ok_or_else(|| {
            Error::usage(format!("--set {text}: there is no option called `{name}`")).cure("--list-options shows them all.")
        })?;
        if table.contains_key(&name) && typed.0.iter().any(|(typed, _)| our_name(typed).is_ok_and(|typed| typed == name)) {
            return Err(Error::usage(format!("--{name} and --set {text} were both given, and they exclude each other"))
                .cure("Leave one of them out."));
        }
        declared.add(&mut table, value.trim())?;
    }
    Ok(table)
}

pub(super) fn run(args: Args, command_line: &str) -> Result<()> {
    if args.list_options {
        return output::print(&if args.json { options_as_json()? } else { all_options() });
    }
    let (options, remarks) = Options::resolve_with_remarks(args.config.as_deref(), overrides(&args.typed, &args.set)?)?;
    remarks.iter().for_each(|remark| output::say(remark));
    if let Some(program) = args.emit {
        return emit(program, &options, args.json);
    }
    let watch = Terminal::heeding_interrupts()?;
    let job = Job { options, dry_run: args.dry_run, must_resume: args.resume, command: command_line.to_owned() };
    let outcome = train::run(job, &watch)?;
    drop(watch);
    match outcome {
        Outcome::Planned(plan) => output::print(&plan_text(&plan, args.json)?),
        Outcome::Finished(record) => output::print(&record_text(&record, args.json)?),
        Outcome::Interrupted { out, step, total } => {
            Err(Error::new(format!("interrupted after step {step} of {total}; a checkpoint is in {}", out.display()))
                .cure("Run the same command again to resume."))
        }
    }
}

fn emit(program: Program, options: &Options, as_json: bool) -> Result<()> {
    let watch = Terminal::new();
    let (folder, rows) = train::emit(options, program, &watch)?;
    drop(watch);
    if as_json {
        return output::print(&output::json(&json!({"out": folder, "rows": rows}))?);
    }
    output::print(&format!("{} and a configuration for {program} in {}\n", count(rows, "row"), folder.display()))
}

fn plan_text(plan: &Plan, json: bool) -> Result<String> {
    if json {
        return output::json(plan);
    }
    let gib = plan.memory_bytes as f64 / (1u64 << 30) as f64;
    let mut text = format!(
        "Training with {}\n{}, {}, {} of them supervised; {} held out\n",
        plan.what,
        count(plan.sequences, "sequence"),
        n_tokens(plan.input_tokens),
        thousands(plan.supervised_tokens),
        count(plan.validation_sequences, "sequence"),
    );
    text += &format!("{}, {} an epoch\n", count(plan.total_steps, "step"), thousands(plan.steps_per_epoch));
    text += &format!("{} trained parameters, about {gib:.1} GiB of memory\n", thousands(plan.trained_parameters));
    let Some(preview) = plan.preview else {
        return Ok(
            text + "Nothing was trained because of --dry-run; choose a loss with --method, or train only adapters with --lora\n"
        );
    };
    text += &format!(
        "On the first {}: cross-entropy {:.3}, mean weight {:.3}, as many effective tokens as {:.0} equal ones, {}\n",
        count(preview.tokens, "supervised token"),
        preview.cross_entropy,
        preview.mean_weight,
        preview.effective_tokens,
        count(preview.confident_conflicts, "confident conflict"),
    );
    Ok(text)
}

fn record_text(record: &TrainRecord, json: bool) -> Result<String> {
    if json {
        return output::json(record);
    }
    let mut text = format!(
        "Trained {} with {} for {}, {}, at {:.0} tokens per second\n",
        record.model.name,
        record.options.method,
        count(record.steps, "step"),
        n_tokens(record.input_tokens),
        record.tokens_per_second,
    );
    text += &ending(record);
    let before = record.before;
    let was = |value: Option<String>| value.map_or(String::new(), |value| format!(" ({value} before)"));
    if let Some(validation) = record.validation {
        text += &format!(
            "{}: cross-entropy {}{}, accuracy {:.1} %{}\n",
            count(validation.rows, "held-out row"),
            number_with_interval(Some(validation.cross_entropy), validation.cross_entropy_ci95, 4),
            was(before.validation.map(|before| format!("{:.4}", before.cross_entropy))),
            100.0 * validation.accuracy,
            was(before.validation.map(|before| format!("{:.1} %", 100.0 * before.accuracy))),
        );
    }
    if let Some(drift) = record.drift {
        text += &format!(
            "General text ({}, {}): mean KL from the base model {} nats, cross-entropy {:.4}{}\n",
            count(drift.texts, "text"),
            n_tokens(drift.tokens),
            divergence(drift.kl, drift.kl_ci95),
            drift.cross_entropy,
            was(before.drift.map(|before| format!("{:.4}", before.cross_entropy))),
        );
    }
    text += &format!("Result {}\n", record.result.display());
    text += &next(record);
    text += &record.note_of_base().map_or_else(String::new, |note| note + "\n");
    Ok(text)
}

/// Suggests commands that show the effect of the training.
fn next(record: &TrainRecord) -> String {
    let named = |option: &str, value: &Option<String>| {
        value.as_ref().map_or_else(String::new, |value| format!(" --{option} {}", quoted(value)))
    };
    let base = named("model", &record.options.model) + &named("base", &record.options.base);
    let result = quoted(&record.result.display().to_string());
    let data = record.options.datasets.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(" ");
    let read_as = read_as(&record.options);
    format!(
        "What it learnt    diagnose {data} --model {result}{read_as}\n\
         What it forgot    diagnose eval{base} --out before; diagnose eval --model {result} --out after; diagnose diff before after\n"
    )
}

/// The options by which another command reads and masks the data in the same way.
fn read_as(options: &Options) -> String {
    let table = |options: &Options| toml::Table::try_from(options).unwrap_or_default();
    let (own, plain) = (table(options), table(&Options::default()));
    let of_rows = RowArgs::augment_args(Command::new("rows"));
    let names = of_rows.get_arguments().filter_map(|argument| argument.get_long());
    let mut text = String::new();
    for name in names.filter(|name| *name != "seed" || options.sample.is_some()) {
        let Some(value) = own.get(name).filter(|value| plain.get(name) != Some(value)) else { continue };
        let values = match value {
            toml::Value::Array(values) => values.as_slice(),
            value => std::slice::from_ref(value),
        };
        for value in values {
            text += &match value {
                toml::Value::Boolean(_) => format!(" --{name}"),
                toml::Value::String(value) => format!(" --{name} {}", quoted(value)),
                value => format!(" --{name} {value}"),
            };
        }
    }
    text
}

/// Explains why the run ended before its last step and which model was kept, if necessary.
fn ending(record: &TrainRecord) -> String {
    let mut text = String::new();
    let Some(lowest) = record.lowest else { return text };
    if record.steps < record.plan.total_steps {
        text += &format!(
            "Ended before step {}: {} evaluations in a row on the held-out rows gave no lower loss\n",
            thousands(record.plan.total_steps),
            lowest.worse_since,
        );
    }
    let (Some(kept), Some(cross_entropy)) = (record.kept_step, lowest.cross_entropy) else { return text };
    if kept < record.steps {
        text += &format!("Kept the model after step {}, which has the lowest held-out loss\n", thousands(kept));
    }
    if record.before.validation.is_some_and(|before| before.cross_entropy <= cross_entropy) {
        text += "No step lowered the loss on held-out rows below its value before training\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(arguments: &[&str]) -> Result<Options> {
        let command = Args::augment_args(Command::new("train"));
        let matches = command.try_get_matches_from([&["train", "a.jsonl"], arguments].concat()).unwrap();
        let args = Args::from_arg_matches(&matches).unwrap();
        Options::resolve(None, overrides(&args.typed, &args.set)?)
    }

    #[test]
    fn every_option_has_a_sentence_and_shows_its_default() {
        let shown = all_options();
        for declared in DECLARED {
            let text = help(declared);
            assert!(text.ends_with('.') && text.split(' ').count() > 3, "{}: {text}", declared.name());
            assert!(shown.contains(&text), "{}", declared.name());
            if let Some(default) = default_of(declared) {
                assert!(text.contains("[default: "), "{}: {text}", declared.name());
                // The default in the help must be the actual one.
                let named = text.split_once("[default: ").unwrap().1.split(']').next().unwrap();
                assert_eq!(named, default, "{}", declared.name());
                let flag = format!("--{}", declared.name());
                let asked_for: &[&str] = if declared.name().starts_with("lora-") { &["--lora"] } else { &[] };
                let with = |more: &[&str]| typed(&[asked_for, more].concat()).unwrap();
                assert_eq!(with(&[&flag, &default]), with(&[]), "{flag}");
                assert_eq!(with(&["--set", &format!("{}={default}", declared.name())]), with(&[]));
            }
        }
    }

    #[test]
    fn the_data_are_read_again_as_they_were_trained_on() {
        let said = |arguments: &[&str]| read_as(&typed(arguments).unwrap());
        assert_eq!(said(&["--lr", "1e-3", "--seed", "3"]), "");
        let arguments =
            ["--map", "prompt=frage", "--map", "completion=die antwort", "--max-len", "512", "--append-eos", "--sample", "9"];
        let text = said(&[&arguments[..], &["--seed", "3", "--supervise", "last"]].concat());
        let expected =
            " --max-len 512 --sample 9 --seed 3 --map prompt=frage --map 'completion=die antwort' --append-eos --supervise last";
        assert_eq!(text, expected);
        // Every option about rows is also one of training, under the same name.
        let of_rows = RowArgs::augment_args(Command::new("rows"));
        for name in of_rows.get_arguments().filter_map(|argument| argument.get_long()) {
            assert!(DECLARED.iter().any(|declared| declared.name() == name), "{name}");
        }
    }

    #[test]
    fn other_programs_names_are_taken_on_the_command_line() {
        let options = typed(&["--learning_rate", "1e-3", "--num-train-epochs", "2.5", "--lora", "--lora_rank", "4"]).unwrap();
        assert_eq!((options.lr, options.epochs, options.lora_r), (Some(1e-3), 2.5, 4));
        let options =
            typed(&["--set", "lora-targets=q_proj,v_proj", "--lora", "--set", "adam_beta2=0.95", "--mix", "a=2"]).unwrap();
        assert_eq!((options.lora().unwrap().targets, options.beta2), (vec!["q_proj".to_owned(), "v_proj".to_owned()], 0.95));
        assert_eq!(options.mix["a"], 2.0);
        for (arguments, expected) in [
            (vec!["--gradient_accumulation_steps", "4"], "batch-size"),
            (vec!["--use-eaft-loss"], "method = \"eaft\""),
            (vec!["--set", "magic=1"], "--list-options"),
            (vec!["--set", "beta2"], "OPTION=VALUE"),
            (vec!["--lr", "1e-5", "--set", "learning_rate=1e-4"], "--lr and --set learning_rate=1e-4 were both given"),
            (vec!["--batch-size", "many"], "--batch-size many: expected a whole number"),
            (vec!["--lr", "-1"], "--lr"),
        ] {
            let error = typed(&arguments).unwrap_err();
            assert!(error.to_string().contains(expected) && error.exit_code() == 2, "{arguments:?}: {error}");
        }
    }
}
