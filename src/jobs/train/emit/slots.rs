//! Checks what other programs make of a row against what is trained on here: a template that they read differently is refused by name.
//!
//! LLaMA-Factory, unless given a template of its own, cuts slots out of four renderings of the tokenizer's template (`parse_template` in
//! src/llamafactory/data/template.py) and assembles every row from them. A template that renders a turn differently when others follow, or that puts
//! something before the first turn, gives other tokens there. axolotl finds a turn by the difference between two renderings of the messages up to it
//! (`find_turn` in src/axolotl/prompt_strategies/chat_template.py), and supervises other tokens where these are no prefix of the whole.
//!
//! A row that is written for another reader also loses what its format has no place for: the tokens that a model drew, the form of a content. It is
//! therefore read again, and rendered beside the row that it was made from.

use serde_json::Value;

use super::Program;
use crate::dataset::{Example, Role, Turn};
use crate::error::{Error, Result};
use crate::tokens::{Renderer, Supervise, with_parsed_arguments};

/// How another program reads rows, or this one reads them again.
pub(crate) struct Reader {
    pub(crate) renderer: Renderer,
    supervise: Supervise,
    reading: Reading,
}

enum Reading {
    /// Messages are rendered by the chat template, with the row's own variables.
    AsWritten,
    /// With its version of the template.
    LlamaFactory(Slots),
    /// With the variables of its configuration, and not those of a row.
    Axolotl(Option<Value>),
}

impl Reader {
    /// `switches` are the variables for the template in the configuration of the program; without a program, the rows are read as written.
    pub(crate) fn of(
        program: Option<Program>,
        renderer: Renderer,
        supervise: Supervise,
        switches: Option<Value>,
    ) -> Result<Reader> {
        let reading = match program {
            None => Reading::AsWritten,
            Some(Program::LlamaFactory) => Reading::LlamaFactory(Slots::of(&renderer)?),
            Some(Program::Axolotl) => Reading::Axolotl(switches),
        };
        Ok(Reader { renderer, supervise, reading })
    }

    /// Returns an error if other tokens would be made of a row, or others supervised, than of the row that it was made from. `read` is that row,
    /// and `written` the one that was made of it.
    pub(crate) fn check(&self, read: &Example, written: &Example) -> Result<()> {
        match &self.reading {
            Reading::AsWritten => check_same(&self.renderer, read, written),
            Reading::LlamaFactory(slots) => slots.check(&self.renderer, read, self.supervise),
            Reading::Axolotl(switches) => {
                let turns = with_parsed_arguments(&written.turns).unwrap_or_else(|| written.turns.clone());
                let written = Example { turns, template_switches: switches.clone(), ..written.clone() };
                check_same(&self.renderer, read, &written)?;
                check_axolotl(&self.renderer, &written, self.supervise)
            }
        }
    }
}

/// Returns an error if the two rows have other tokens, or other weights of them.
fn check_same(renderer: &Renderer, read: &Example, written: &Example) -> Result<()> {
    if read.rollout.is_none()
        && read.turns.len() == written.turns.len()
        && read.turns.iter().zip(&written.turns).all(|(own, other)| own.is_same(other))
        && (&read.tools, &read.template_switches) == (&written.tools, &written.template_switches)
    {
        return Ok(());
    }
    let Ok(ours) = renderer.render_whole(0, read) else {
        return match renderer.render_whole(0, written) {
            Ok(theirs) if theirs.sequence.has_targets() => {
                Err(Error::new("the run could not render the row, and has learnt nothing of it"))
            }
            _ => Ok(()),
        };
    };
    let theirs = renderer
        .render_whole(0, written)
        .map_err(|error| Error::new("the chat template cannot render the row as it is written").caused_by(error))?;
    let why = match read.rollout {
        Some(_) => "the model's own tokens of the answer are not written, and those of its text differ",
        None => "the row as it is written has other tokens",
    };
    if let Some(difference) = difference(renderer, &theirs.sequence.ids, &ours.sequence.ids) {
        return Err(Error::new(format!("{why}: {difference}")));
    }
    match ours.sequence.supervised == theirs.sequence.supervised && ours.target_weights == theirs.target_weights {
        true => Ok(()),
        false => Err(Error::new("the row as it is written has other weights of its tokens")),
    }
}

/// Describes where the tokens that another program makes of a row begin to differ from ours.
fn difference(renderer: &Renderer, theirs: &[u32], ours: &[u32]) -> Option<String> {
    let at = theirs.iter().zip(ours).take_while(|(a, b)| a == b).count();
    let shown = |ids: &[u32]| {
        let text: String = ids.iter().skip(at).take(8).map(|&id| renderer.tokenizer().text(id)).collect();
        format!("{text:?}")
    };
    (theirs != ours).then(|| format!("at token {at} {} where the run has {}", shown(theirs), shown(ours)))
}

/// The slots that LLaMA-Factory extracts from a chat template.
struct Slots {
    prefix: String,
    system: String,
    default_system: String,
    user: String,
    assistant: String,
    /// Whether every answer without reasoning gets an empty reasoning block.
    thinks: bool,
}

const CONTENT: &str = "{{content}}";
const NO_THOUGHT: &str = "<think>\n\n</think>\n\n";

impl Slots {
    /// Follows `parse_template` line by line; it counts characters.
    fn of(renderer: &Renderer) -> Result<Slots> {
        if renderer.template_sha256().is_none() {
            return Err(Error::new(
                "the model has no chat template, without which LLaMA-Factory does not learn where answers end",
            )
            .cure("Use --emit axolotl, or train here."));
        }
        let tokenizer = renderer.tokenizer();
        let prefix: String = tokenizer.leading().iter().map(|&id| tokenizer.text(id)).collect();
        let n_prefix = prefix.chars().count();
        let turn = |role: Role, text: &str| Turn::plain(role, text);
        let render = |turns: Vec<Turn>, asks: bool| {
            let text = renderer.text(turns, asks).map_err(|error| unlike("cannot read this chat template").caused_by(error))?;
            Ok::<_, Error>(behind(&text, n_prefix).to_owned())
        };
        let system = render(vec![turn(Role::System, CONTENT)], false)?;
        let empty_system = render(vec![turn(Role::System, ""), turn(Role::User, CONTENT)], true)?;
        let mut user = render(vec![turn(Role::User, CONTENT)], true)?;
        let answered = render(vec![turn(Role::User, CONTENT), turn(Role::Assistant, CONTENT)], false)?;
        let answer = behind(&answered, user.chars().count());
        let thinks = answer.contains("<think>");
        let assistant = answer.replace("<think>", "").replace("</think>", "").trim_start_matches('\n').to_owned();
        let mut default_system = String::new();
        if user.chars().count() > empty_system.chars().count() {
            default_system = added(&empty_system, &user);
            let alone = system.replacen(CONTENT, &default_system, 1);
            user = behind(&user, alone.chars().count()).to_owned();
        }
        if let Some(slot) = [&system, &user, &assistant].into_iter().find(|slot| !slot.contains(CONTENT)) {
            return Err(unlike(&format!("finds no place for the content in a part of this chat template, {slot:?}")));
        }
        Ok(Slots { prefix, system, default_system, user, assistant, thinks })
    }

    /// Returns an error if LLaMA-Factory would make other tokens of the row, or supervise others.
    fn check(&self, renderer: &Renderer, example: &Example, supervise: Supervise) -> Result<()> {
        let sequence = renderer.render_whole(0, example)?.sequence;
        let pieces = self.pieces(renderer, &example.turns, supervise)?;
        let ids: Vec<u32> = pieces.iter().flat_map(|(ids, _)| ids).copied().collect();
        if let Some(difference) = difference(renderer, &ids, &sequence.ids) {
            return Err(unlike(&format!("tokenises the row differently: {difference}")));
        }
        let last = pieces.iter().rposition(|(_, is_answer)| *is_answer);
        let mut at = 0;
        for (idx, (ids, is_answer)) in pieces.iter().enumerate() {
            let ours = &sequence.supervised[at..at + ids.len()];
            let n_learnt = ours.iter().take_while(|learnt| **learnt).count();
            let is_learnt = *is_answer && (supervise == Supervise::Assistant || Some(idx) == last);
            // LLaMA-Factory also supervises a line break after the end of a turn.
            let behind: String = ids[n_learnt..].iter().map(|&id| renderer.tokenizer().text(id)).collect();
            let is_same = if is_learnt { n_learnt > 0 && behind.trim().is_empty() } else { n_learnt == 0 };
            if !is_same || ours[n_learnt..].contains(&true) {
                return Err(unlike("masks the row differently"));
            }
            at += ids.len();
        }
        Ok(())
    }

    /// The pieces that LLaMA-Factory encodes one by one, each with whether it is an answer: `_encode` and `encode_multiturn`.
    fn pieces(&self, renderer: &Renderer, turns: &[Turn], supervise: Supervise) -> Result<Vec<(Vec<u32>, bool)>> {
        let encode =
            |text: &str| Ok::<_, Error>(renderer.tokenizer().encode(text)?.iter().map(|token| token.id).collect::<Vec<_>>());
        let (system, turns) = match turns.split_first() {
            Some((first, rest)) if first.role == Role::System => (first.content.as_str(), rest),
            _ => ("", turns),
        };
        let system = if system.is_empty() { self.default_system.as_str() } else { system };
        let mut pieces = vec![(encode(&self.prefix)?, false)];
        if !system.is_empty() {
            pieces.push((encode(&self.system.replacen(CONTENT, system, 1))?, false));
        }
        for (idx, turn) in turns.iter().enumerate() {
            if turn.role != Role::Assistant {
                pieces.push((encode(&self.user.replacen(CONTENT, &turn.content, 1))?, false));
                continue;
            }
            let is_given = supervise == Supervise::Last && idx + 1 < turns.len();
            let mut ids = Vec::new();
            if self.thinks && !is_given && !turn.content.contains("<think>") && !turn.content.contains("</think>") {
                ids = encode(NO_THOUGHT)?;
            }
            ids.extend(encode(&self.assistant.replacen(CONTENT, &turn.content, 1))?);
            pieces.push((ids, true));
        }
        Ok(pieces)
    }
}

fn unlike(what: &str) -> Error {
    Error::new(format!("LLaMA-Factory {what}")).cure("Use --emit axolotl, or train here.")
}

/// The text after its first `n` characters.
fn behind(text: &str, n: usize) -> &str {
    text.char_indices().nth(n).map_or("", |(at, _)| &text[at..])
}

/// The characters that a longer text has and a shorter one lacks, as in `find_diff`.
fn added(short: &str, long: &str) -> String {
    let mut rest = short.chars().peekable();
    let mut found = String::new();
    for c in long.chars() {
        match rest.peek() {
            None => break,
            Some(next) if *next == c => _ = rest.next(),
            Some(_) => found.push(c),
        }
    }
    found
}

/// Returns an error if axolotl, which takes a turn to be the difference between two renderings of the messages up to it, would supervise other
/// tokens; of a turn without a text it finds nothing, not even the end.
fn check_axolotl(renderer: &Renderer, example: &Example, supervise: Supervise) -> Result<()> {
    let last = example.turns.iter().rposition(|turn| turn.role == Role::Assistant);
    let is_learnt = |&turn: &usize| {
        let own = &example.turns[turn];
        own.role == Role::Assistant && own.is_learnt() && (supervise != Supervise::Last || Some(turn) == last)
    };
    let learnt: Vec<usize> = (0..example.turns.len()).filter(is_learnt).collect();
    let is_empty = |turn: &Turn| turn.content.trim().is_empty() && turn.reasoning.is_none() && turn.calls().next().is_none();
    if let Some(turn) = learnt.iter().find(|&&turn| is_empty(&example.turns[turn])) {
        return Err(Error::new(format!(
            "message {} is empty, and axolotl learns nothing of it, whereas here its end is learnt",
            turn + 1
        ))
        .cure("Give the message \"weight\": 0, or remove the row."));
    }
    match renderer.rewritten_turn(example, &learnt)? {
        None => Ok(()),
        Some(turn) => Err(Error::new(format!(
            "the chat template renders message {} differently when others follow it, so axolotl would learn different tokens of it",
            turn + 1
        ))
        .cure("Use --supervise last, train here, or pass a template that does not.")),
    }
}
