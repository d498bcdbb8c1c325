//! Checks what another trainer makes of the exported rows, and reports where it would supervise other tokens than the run.
//!
//! A file holds only rows and masks. It holds neither the run's system prompt, nor its choice of supervised turns, nor how a chat template renders
//! turns that others follow.

use serde_json::{Map, Value};

use crate::dataset::write::Target;
use crate::dataset::{Example, Place, Role, Turn};
use crate::error::{Error, Result};
use crate::format::count;
use crate::jobs::score::RunRecord;
use crate::jobs::train::{Program, Reader};
use crate::model::{ModelName, Reference, text_of};
use crate::tokens::{RenderOptions, Renderer, Supervise};

/// The reader of the rows: another program, or whoever renders them with the chat template of the run.
pub(super) struct Peer {
    target: Target,
    reader: Reader,
    /// The run's variables for the chat template.
    switches: Option<Value>,
    /// The number of rows that it tokenizes or supervises differently, and the first of them with the reason.
    unlike: u64,
    example: Option<String>,
}

impl Peer {
    /// Returns an error if the model of the run is missing or has changed.
    pub(super) fn of(target: Target, record: &RunRecord) -> Result<Peer> {
        let path = &record.model.path;
        if !path.exists() {
            return Err(Error::new(format!("the model of the run is not at {} any more", path.display())));
        }
        let name = ModelName { written: Some(path.to_string_lossy().into_owned()), base: record.model.base.clone() };
        let reference = Reference::resolve_text(&name, &|_, _, _| ())?;
        let (tokenizer, template) = text_of(&reference)?;
        // That a trainer has to learn the whole text is said beside the rows.
        let supervise = if record.supervise == Supervise::Last { Supervise::Last } else { Supervise::Assistant };
        let switches = record.template_switches.clone();
        let options = RenderOptions {
            supervise,
            append_eos: record.append_eos,
            template_switches: switches.clone(),
            ..RenderOptions::default()
        };
        let of_run = Renderer::new(tokenizer, template, options)?;
        if of_run.template_sha256() != record.template_sha256.as_deref() {
            return Err(Error::new(match of_run.writes_date() {
                true => "the chat template writes the date, and the run was made on another day or with another template",
                false => "the run used a different chat template than the model's (--chat-template), which a trainer needs, too",
            }));
        }
        let reader = Reader::of(program(target), of_run.without_switches(), record.supervise, switches.clone())?;
        Ok(Peer { target, reader, switches, unlike: 0, example: None })
    }

    /// Returns the turns as the run rendered them, for readers that do not adapt what they give to the template; `None` if it could not render the row.
    pub(super) fn turns(&self, example: &Example) -> Option<Vec<Turn>> {
        let template_switches = with_defaults(example.template_switches.clone(), self.switches.as_ref());
        self.reader.renderer.turns_as_rendered(&Example { template_switches, ..example.clone() }).ok()
    }

    /// Checks a written row against the row that it was made from.
    pub(super) fn read(&mut self, place: &Place, example: Example, written: &Example) {
        let with_end = (self.target == Target::Trl).then(|| self.with_end(written)).flatten();
        let written = with_end.as_ref().unwrap_or(written);
        let template_switches = with_defaults(example.template_switches.clone(), self.switches.as_ref());
        if let Err(error) = self.reader.check(&Example { template_switches, ..example }, written) {
            self.unlike += 1;
            self.example.get_or_insert_with(|| format!("{place}: {}", error.reason()));
        }
    }

    /// Returns a plain text with the end token, which TRL appends to those that do not end with it (`add_eos` in its `sft_trainer.py`).
    fn with_end(&self, written: &Example) -> Option<Example> {
        let tokenizer = self.reader.renderer.tokenizer();
        let end = tokenizer.text(tokenizer.eos()?);
        let [turn] = &written.turns[..] else { return None };
        let content = format!("{}{end}", turn.content);
        let is_open = turn.role == Role::Text && !turn.content.ends_with(&end);
        is_open.then(|| Example { turns: vec![Turn { content, ..turn.clone() }], ..written.clone() })
    }

    /// The result for all rows, as a sentence.
    pub(super) fn note(&self) -> Option<String> {
        let told = if self.target == Target::LlamaFactory { " (without a `template` of its own)" } else { "" };
        let (rows, who) = (count(self.unlike, "row"), title(self.target));
        let example = self.example.as_ref()?;
        Some(format!("of {rows} {who}{told} learns different tokens than the run; for example {example}"))
    }
}

/// The program whose reading of rows is implemented here.
fn program(target: Target) -> Option<Program> {
    match target {
        Target::LlamaFactory => Some(Program::LlamaFactory),
        Target::Axolotl => Some(Program::Axolotl),
        _ => None,
    }
}

/// The reader's name.
pub(super) fn title(target: Target) -> &'static str {
    match target {
        Target::LlamaFactory => "LLaMA-Factory",
        Target::Axolotl => "axolotl",
        Target::Trl => "TRL",
        Target::Read | Target::Messages | Target::ShareGpt | Target::Alpaca => "a trainer with the model's chat template",
    }
}

/// Whether rows of this format hold the variables for the chat template, so that those of the run are written into them.
pub(super) fn holds_switches(target: Target) -> bool {
    matches!(target, Target::Messages | Target::ShareGpt | Target::Trl)
}

/// The variables for the template of the row, and those of the run that the row does not set.
pub(super) fn with_defaults(own: Option<Value>, run: Option<&Value>) -> Option<Value> {
    let all = [run, own.as_ref()].into_iter().flatten().filter_map(Value::as_object).flatten();
    let all: Map<String, Value> = all.map(|(key, value)| (key.clone(), value.clone())).collect();
    if all.is_empty() { own } else { Some(Value::Object(all)) }
}

/// Settings of the run that no row contains and the trainer needs, as sentences.
pub(super) fn beside_rows(target: Target, record: &RunRecord) -> Vec<String> {
    let mut notes = Vec::new();
    if record.system.is_some() {
        notes.push(
            "the run added a system prompt to conversations without one (--system), which is not in the rows: set it in the trainer too"
                .to_owned(),
        );
    }
    // axolotl's are in the settings beside the rows.
    if record.template_switches.is_some() && !holds_switches(target) && target != Target::Axolotl {
        notes.push(
            "the run gave the chat template variables (--chat-template-kwargs), which are not in the rows: set them in the trainer too"
                .to_owned(),
        );
    }
    if record.append_eos && matches!(target, Target::Read) {
        notes.push(
            "the run appended the end token to plain texts (--append-eos), which is not in the rows: set it in the trainer too"
                .to_owned(),
        );
    }
    let learns = match (record.supervise, target) {
        (Supervise::Assistant, _) | (Supervise::Last, Target::Axolotl) => None,
        (Supervise::Last, Target::LlamaFactory) => {
            Some("only the last answer of a row (--supervise last): set mask_history: true in LLaMA-Factory")
        }
        (Supervise::Last, _) => Some(
            "only the last answer of a row (--supervise last): configure the trainer likewise, which otherwise learns all answers",
        ),
        (Supervise::All, _) => {
            Some("the whole text of a row (--supervise all): configure the trainer likewise, which otherwise learns only answers")
        }
    };
    notes.extend(learns.map(|learns| format!("the run learns {learns}")));
    notes
}
