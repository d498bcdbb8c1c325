//! Checks what another trainer makes of the exported rows, and reports where it would supervise other tokens than the run.
//!
//! A file holds only rows and masks. It holds neither the run's system prompt, nor its choice of supervised turns, nor how a chat template renders
//! turns that others follow.

use crate::dataset::write::Target;
use crate::dataset::{Example, Place};
use crate::error::{Error, Result};
use crate::format::count;
use crate::jobs::score::RunRecord;
use crate::jobs::train::{Program, Reader};
use crate::model::{ModelName, Reference, text_of};
use crate::tokens::{RenderOptions, Renderer, Supervise};

/// Another program that reads the rows with the run's model.
pub(super) struct Peer {
    program: Program,
    reader: Reader,
    /// The number of rows that it tokenizes or supervises differently, and the first of them with the reason.
    unlike: u64,
    example: Option<String>,
}

impl Peer {
    /// Returns an error if the model of the run is missing or has changed.
    pub(super) fn of(program: Program, record: &RunRecord) -> Result<Peer> {
        let path = &record.model.path;
        if !path.exists() {
            return Err(Error::new(format!("the model of the run is not at {} any more", path.display())));
        }
        let name = ModelName { written: Some(path.to_string_lossy().into_owned()), base: record.model.base.clone() };
        let reference = Reference::resolve_text(&name, &|_, _, _| ())?;
        let (tokenizer, template) = text_of(&reference)?;
        let renderer = Renderer::new(tokenizer, template, RenderOptions::default())?;
        if renderer.template_sha256() != record.template_sha256.as_deref() {
            return Err(Error::new("the run used a different chat template than the model's"));
        }
        let reader = Reader::of(program, renderer, record.supervise)?;
        Ok(Peer { program, reader, unlike: 0, example: None })
    }

    /// Checks a written row.
    pub(super) fn read(&mut self, place: &Place, example: &Example) {
        if let Err(error) = self.reader.check(example) {
            self.unlike += 1;
            self.example.get_or_insert_with(|| format!("{place}: {}", error.reason()));
        }
    }

    /// The result for all rows, as a sentence.
    pub(super) fn note(&self) -> Option<String> {
        let told = if self.program == Program::LlamaFactory { " (without a `template` of its own)" } else { "" };
        let (rows, program) = (count(self.unlike, "row"), title(self.program));
        let example = self.example.as_ref()?;
        Some(format!("of {rows} {program}{told} learns different tokens than the run; for example {example}"))
    }
}

/// The program whose reading of rows is implemented here.
pub(super) fn program(target: Target) -> Option<Program> {
    match target {
        Target::LlamaFactory => Some(Program::LlamaFactory),
        Target::Axolotl => Some(Program::Axolotl),
        _ => None,
    }
}

/// The program's name as it spells it.
pub(super) fn title(program: Program) -> &'static str {
    match program {
        Program::LlamaFactory => "LLaMA-Factory",
        Program::Axolotl => "axolotl",
    }
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
