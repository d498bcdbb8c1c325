//! Finds the reasons why the results of a task cannot be compared.

use super::super::metrics::Sample;
use super::super::results::Settings;
use super::super::tasks::TaskKind;
use super::pairs::Pairs;
use crate::error::{Error, Result};
use crate::format::part_of;

/// The reason why the two sides of the task `name` cannot be compared. Returns an error if its items themselves contradict each other.
pub(super) fn reason(name: &str, items: &Pairs) -> Result<Option<String>> {
    if let (Some(old), Some(new)) = (&items.old.settings, &items.new.settings)
        && let Some(option) = differing_option(old, new)
    {
        return Ok(Some(format!(
            "`{name}` was asked in two ways, which differ in {option}: {old}; and {new}. This hides what the model changed"
        )));
    }
    for [old, new] in items.samples() {
        if (old.answer, old.choices.len()) != (new.answer, new.choices.len()) {
            return Err(Error::new(format!("item `{}` of `{name}` has different choices before and after", old.id))
                .cure("Evaluate both models on the same task file."));
        }
    }
    let other_documents = || {
        let n = items.n_differing(|asked| asked.document.as_deref());
        (n > 0).then(|| {
            format!(
                "`{name}`: {} by the same number (doc_hash differs): these are two data sets",
                part_of(n as u64, items.len() as u64, "item", ["is a different document", "are different documents"])
            )
        })
    };
    let other_text = items.samples().find_map(|[old, new]| other_text(name, items.old.kind?, old, new));
    Ok(other_text.or_else(other_documents))
}

/// The option by which the two were asked differently. Few-shot examples do not count: their differences are reported beside the
/// numbers.
fn differing_option(old: &Settings, new: &Settings) -> Option<&'static str> {
    let of_writing = || old.writing.as_ref().zip(new.writing.as_ref()).and_then(|(old, new)| old.differs(new));
    old.asked.differs(&new.asked).or_else(of_writing)
}

/// The reason why the log-likelihoods of an item cannot be compared: different texts or, for losses per token, different tokens.
fn other_text(name: &str, kind: TaskKind, old: &Sample, new: &Sample) -> Option<String> {
    let (before, after) = (old.choices.first()?, new.choices.first()?);
    match kind {
        TaskKind::Text if before.bytes != after.bytes => Some(format!(
            "`{name}`: text {} has {} bytes before and {} after: these are two texts",
            old.id, before.bytes, after.bytes
        )),
        // Rows with different text are counted in `prompts_differ` instead.
        TaskKind::Rows if before.tokens != after.tokens && old.prompt_sha256 == new.prompt_sha256 => Some(format!(
            "`{name}` is measured per token, but row {} has {} tokens before and {} after (another tokenizer, chat template or --max-len): a loss per token cannot be compared",
            old.id, before.tokens, after.tokens
        )),
        _ => None,
    }
}
