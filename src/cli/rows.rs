//! Declares the options for reading and rendering rows, which several commands share.

use std::path::PathBuf;

use crate::dataset::{Choice, FieldMap, Format, ReadOptions, RoleMap};
use crate::error::{Error, Result};
use crate::tokens::{DEFAULT_MAX_LEN, RenderOptions, Supervise};

#[derive(clap::Args)]
pub(super) struct RowArgs {
    /// Longest sequence in tokens; longer ones are cut at their end and counted (`rollout` skips prompts that leave no room for an answer) [default: 2048, or the model's limit if lower]
    #[arg(long, value_name = "TOKENS", aliases = ["max-length", "max_length", "max_seq_length", "cutoff-len", "cutoff_len", "sequence_len"])]
    max_len: Option<usize>,

    /// Read only the first N records, for a quick try; these may not be representative
    #[arg(long, value_name = "N", conflicts_with = "sample")]
    limit: Option<u64>,

    /// Read N records drawn at random; the report's intervals then apply to the whole data set
    #[arg(long, value_name = "N")]
    sample: Option<u64>,

    /// Seed of --sample; a larger sample with the same seed contains the smaller one [default: 0]
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,

    /// Data format [default: detected]: messages, sharegpt, alpaca, prompt-completion, question-answer, text, ..
    #[arg(long)]
    format: Option<Format>,

    /// Which column a field is read from, for data in no known format: `--map prompt=question --map 'completion={exp}'`
    #[arg(long = "map", value_name = "FIELD=COLUMN")]
    maps: Vec<String>,

    /// Role of a speaker in the data: `--role patient=user --role doctor=assistant`
    #[arg(long = "role", value_name = "NAME=ROLE")]
    roles: Vec<String>,

    /// Stop at the first bad row instead of skipping it
    #[arg(long)]
    strict: bool,

    /// System prompt for conversations without one
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,

    /// Jinja file with a chat template to use instead of the model's own
    #[arg(long, value_name = "FILE")]
    chat_template: Option<PathBuf>,

    /// Variables for the chat template as a JSON object, such as '{"enable_thinking": false}'; a row's own take precedence
    #[arg(long, value_name = "JSON")]
    chat_template_kwargs: Option<String>,

    /// Append the end token to plain texts that do not end with it, as TRL does
    #[arg(long)]
    append_eos: bool,

    /// Which text is supervised: assistant (every assistant turn), last (only the last one), all (the whole text) [default: assistant]
    #[arg(long)]
    supervise: Option<Supervise>,
}

impl RowArgs {
    pub(super) fn read(&self) -> Result<ReadOptions> {
        for (option, n) in [("--limit", self.limit), ("--sample", self.sample)] {
            if n == Some(0) {
                return Err(Error::usage(format!("{option} 0 leaves nothing to read; expected 1 or more")));
            }
        }
        Ok(ReadOptions {
            format: self.format,
            mapping: FieldMap::parse(&self.maps)?,
            roles: RoleMap::parse(&self.roles)?,
            strict: self.strict,
        })
    }

    /// Which records to read.
    pub(super) fn choice(&self) -> Choice {
        match self.sample {
            Some(n) => Choice::Random { n, seed: self.seed() },
            None => Choice::first(self.limit),
        }
    }

    pub(super) fn seed(&self) -> u64 {
        self.seed.unwrap_or(0)
    }

    /// Returns an error for a seed without a sample. It is allowed with --limit: an options file may contain it for its own `sample`, which the typed
    /// --limit replaces.
    pub(super) fn refuse_lone_seed(&self) -> Result<()> {
        match self.seed {
            Some(seed) if self.sample.is_none() && self.limit.is_none() => {
                Err(Error::usage(format!("--seed {seed} has no effect without --sample: all rows are read, none at random"))
                    .cure("Give --sample N, or leave it out."))
            }
            _ => Ok(()),
        }
    }

    /// Returns an error for options about the loss mask, where nothing is supervised.
    pub(super) fn refuse_targets(&self) -> Result<()> {
        let given = [("--supervise", self.supervise.is_some()), ("--append-eos", self.append_eos)];
        match given.iter().find(|(_, is_given)| *is_given) {
            Some((option, _)) => {
                Err(Error::usage(format!("{option} has no effect on prompts: it is about the loss mask of a row"))
                    .cure("Leave it out, and pass it when you score the answers."))
            }
            None => Ok(()),
        }
    }

    /// The user's limit; otherwise it depends on the model.
    pub(super) fn max_len(&self) -> Option<usize> {
        self.max_len
    }

    pub(super) fn render(&self) -> Result<RenderOptions> {
        if let Some(max_len) = self.max_len.filter(|max_len| *max_len < 2) {
            return Err(Error::usage(format!("--max-len {max_len} leaves nothing to predict; expected 2 or more")));
        }
        Ok(RenderOptions {
            system: self.system.clone(),
            max_len: self.max_len.unwrap_or(DEFAULT_MAX_LEN),
            supervise: self.supervise.unwrap_or_default(),
            chat_template: self.chat_template.clone(),
            template_switches: RenderOptions::parse_switches(self.chat_template_kwargs.as_deref())?,
            append_eos: self.append_eos,
        })
    }
}
